"""What a search may change: a range or a list of values for settings of the recipe."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args, get_type_hints

from ..errors import UserError
from ..training.recipe import Recipe

# Drawn so that factors count alike, where other ranges are drawn so that differences do.
BY_FACTOR = ("learning_rate", "weight_decay")
SETTINGS = [field.name for field in fields(Recipe)]

Value = int | float | str
Settings = Mapping[str, Any]  # a `Value` for each name in `Recipe`


@dataclass(frozen=True)
class Choice:
    """``values`` are the two ends of a range where ``between`` is set, else all that there are."""

    values: tuple[Value, ...]
    between: bool

    def __contains__(self, value: Value) -> bool:
        if isinstance(value, str) or not self.between:
            return value in self.values
        low, high = map(float, self.values)
        return low <= value <= high


def parse_space(given: Sequence[str], recipe: Recipe) -> dict[str, Choice]:
    """What ``name=low:high`` and ``name=a,b,c`` say of each setting, by its name in `Recipe`.

    The other settings are those of ``recipe``. Raises `UserError` for what is no setting, no range or no list, and
    where it holds values that the recipe refuses.
    """
    space: dict[str, Choice] = {}
    for text in given:
        name, sign, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not sign:
            raise UserError(f"search must be NAME=LOW:HIGH or NAME=A,B, such as epochs=50:150, got {text}")
        if name not in SETTINGS:
            raise UserError(f"search must name settings of the recipe, {', '.join(SETTINGS)}, got {name}")
        if name in space:
            raise UserError(f"search names {name} twice")
        space[name] = _choice(name, values)
    if not space:
        raise UserError("search must name a setting of the recipe at least, got none")
    for _ in corners(space, recipe):
        pass
    return space


def corners(space: Mapping[str, Choice], recipe: Recipe) -> Iterator[Recipe]:
    """The recipes at the ends of all ranges: where these can be, so can what lies between.

    Raises `UserError` at one that cannot be.
    """
    ends = [
        choice.values if isinstance(choice.values[0], str) else (min(choice.values), max(choice.values))
        for choice in space.values()
    ]
    for corner in itertools.product(*ends):
        settings: Settings = dict(zip(space, corner, strict=True))
        yield replace(recipe, **settings)


def _choice(name: str, text: str) -> Choice:
    kind = type(getattr(Recipe(), name))
    between = ":" in text
    try:
        values = tuple(kind(part.strip()) for part in text.split(":" if between else ","))
    except ValueError as error:
        raise UserError(f"search: {name} must be LOW:HIGH or A,B of type {kind.__name__}, got {text}") from error
    if kind is str:
        known = get_args(get_type_hints(Recipe)[name])
        if between or not set(values) <= set(known):
            raise UserError(f"search: {name} must be some of {','.join(known)}, got {text}")
    elif not all(map(math.isfinite, values)):
        raise UserError(f"search: {name} must be finite, got {text}")
    if between and (len(values) != 2 or not values[0] < values[1]):
        raise UserError(f"search: {name} must be LOW:HIGH with LOW below HIGH, got {text}")
    if len(set(values)) < 2 or len(set(values)) < len(values):
        raise UserError(f"search: {name} must be LOW:HIGH or two values or more, no two alike, got {text}")
    if between and name in BY_FACTOR and values[0] <= 0:
        raise UserError(f"search: {name} must begin above 0, since factors are searched, got {text}")
    return Choice(values, between)

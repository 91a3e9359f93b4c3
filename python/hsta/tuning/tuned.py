"""What a search found, kept as a file that `hsta train` and `hsta evaluate` take."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..data.clips import Clip
from ..errors import UserError
from ..files import write_text
from ..training.recipe import Recipe
from .space import Settings

SEARCHES = "searches"  # folder of a run, a folder in it for each search
RECIPE = "recipe.json"
EVERYBODY = "everybody"  # the search that holds nobody out


@dataclass(frozen=True)
class Tuned:
    """``recipe`` is that of the best trial, ``found`` the settings in it that were searched, ``people`` on whom."""

    found: Settings
    recipe: Recipe
    people: tuple[str, ...]

    def write(self, search: Path, **more: object) -> None:
        """Into the folder of a search; ``more`` is for readers."""
        values = {**more, "found": self.found, "recipe": asdict(self.recipe), "people": self.people}
        write_text(search / RECIPE, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, search: Path) -> Tuned:
        """Raises `UserError` where there is none, or a damaged one."""
        path = search / RECIPE
        if not path.is_file():
            how = "; hsta tune --protocol none finds it" if search.name == EVERYBODY else ""
            raise UserError(f"no recipe for {search.name} was found: {path} is missing{how}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(dict(values["found"]), Recipe(**values["recipe"]), tuple(values["people"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error}; search anew") from error


def tuned_recipe(tuning: Path, name: str, given: Recipe, tested: Iterable[Clip] = ()) -> Recipe:
    """The recipe that `hsta tune` found in the search ``name``, which saw nobody who is ``tested``.

    Raises `UserError` where there is none, where it saw them, and where what was not searched is not as ``given``.
    """
    tuned = Tuned.read(tuning / SEARCHES / name)
    if shared := sorted({" ".join(clip.person) for clip in tested} & set(tuned.people)):
        more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
        raise UserError(f"the recipe for {name} in {tuning} was chosen on people who are tested: {shared[:3]}{more}")
    now = asdict(replace(given, **tuned.found))
    for setting, value in asdict(tuned.recipe).items():
        if now[setting] != value:
            raise UserError(
                f"the recipe for {name} in {tuning} was found with {setting} {value}, not {now[setting]}: "
                "give the options that hsta tune was given"
            )
    return tuned.recipe

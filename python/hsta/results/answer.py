"""From a model's outputs to what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..data.clips import Label, classes_of

if TYPE_CHECKING:
    from torch import Tensor

NO_UNIT = "no action unit"


def probabilities_of(logits: Tensor, action_units: bool) -> Tensor:
    """Of classes, which exclude each other, or of action units, each for itself: float64, of the shape (..., C)."""
    return logits.double().sigmoid() if action_units else logits.double().softmax(-1)


def answer(probabilities: Sequence[float], action_units: bool) -> Label:
    """The most probable class, or the action units that are more probable than not."""
    if action_units:
        return tuple(label for label, probability in enumerate(probabilities) if probability > 0.5)
    return max(range(len(probabilities)), key=probabilities.__getitem__)


def named(label: Label, class_names: Sequence[str]) -> str:
    """A class by its name, action units by theirs: ``AU1+AU2``; nothing for none."""
    return "+".join(class_names[place] for place in classes_of(label))


def said(probabilities: dict[str, float], action_units: bool) -> str:
    """What a model says in words, of the probabilities by name."""
    return named(answer(list(probabilities.values()), action_units), list(probabilities)) or NO_UNIT

"""What a data set is to the rest of the frontend: clips with a subject, frames and a label."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Clip:
    """One micro-expression. ``frames`` are the image files from onset to offset, both included, in order;
    ``apex`` indexes them, or is None where the annotators gave none. ``label`` indexes the set's class names.
    """

    dataset: str
    subject: str
    name: str
    frames: tuple[Path, ...]
    apex: int | None
    emotion: str
    label: int


@dataclass
class DatasetIndex:
    """The clips of a data set, class names in the order of the labels, and what was wrong in its files.

    ``generated`` marks data that are no evidence about real faces.
    """

    name: str
    clips: list[Clip]
    class_names: tuple[str, ...]
    notes: list[str] = field(default_factory=list)
    generated: bool = False

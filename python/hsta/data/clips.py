"""What a data set is to the rest of the frontend: clips with a subject, frames and a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .names import name_key

if TYPE_CHECKING:
    from .prepared_frames import PreparedFrames


# A class, by its place among the class names; where classes are action units, all those that a clip shows, maybe none.
Label = int | tuple[int, ...]


def classes_of(label: Label) -> tuple[int, ...]:
    """The classes that a label names: one, or any number of action units."""
    return label if isinstance(label, tuple) else (label,)


@dataclass(frozen=True)
class Clip:
    """One micro-expression. ``frames`` are those from onset to offset, both included, in order, as image files or as
    `hsta prepare` left them; ``apex`` indexes them, or is None where the annotators gave none. ``label`` indexes the
    set's class names, and ``emotion`` is what stands for it in the table: an emotion, or action units (``4+7``).
    """

    dataset: str
    subject: str
    name: str
    frames: tuple[Path, ...] | PreparedFrames
    apex: int | None
    emotion: str
    label: Label

    @property
    def files(self) -> tuple[Path, ...]:
        """``frames`` where they are image files. Raises TypeError where they are as `hsta prepare` left them."""
        if isinstance(self.frames, tuple):
            return self.frames
        raise TypeError(f"{self.subject} {self.name} has no image files, its frames are in {self.frames.path}")

    @property
    def person(self) -> tuple[str, str]:
        """The same for all clips of one person, however the subject is spelled."""
        return self.dataset, name_key(self.subject)


class Preparation(NamedTuple):
    """How `hsta prepare` cut out the faces: what found them (`hsta.face.detectors`), and the side of the frames."""

    detector: str
    size: int


@dataclass(frozen=True)
class Fault:
    """Something wrong in a data set's files, and how it is treated. ``row`` is None where it is of no row."""

    file: str
    row: int | None
    message: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.row is None else f' row {self.row}'}: {self.message}"


@dataclass
class DatasetIndex:
    """The clips of a data set, class names in the order of the labels, and what was wrong in its files.

    ``notes`` are what somebody who uses the set should know, ``faults`` what is wrong in its files, and ``lost``
    is the number of clips that they cost. ``generated`` marks data that are no evidence about real faces. With
    ``action_units`` these are the classes, and a clip has a tuple of them for its label; else it has one class.
    ``prepared`` is None where frames are as the data set has them.
    """

    name: str
    clips: list[Clip]
    class_names: tuple[str, ...]
    notes: list[str] = field(default_factory=list)
    generated: bool = False
    faults: list[Fault] = field(default_factory=list)
    lost: int = 0
    action_units: bool = False
    prepared: Preparation | None = None

    def counts(self) -> list[int]:
        """The number of clips of each class."""
        counted = Counter(label for clip in self.clips for label in classes_of(clip.label))
        return [counted[label] for label in range(len(self.class_names))]

    def keep(self, labels: Sequence[int]) -> None:
        """Leave these classes, in this order, and no others. Clips may lose action units so, but not their class."""
        place = {label: number for number, label in enumerate(labels)}
        self.class_names = tuple(self.class_names[label] for label in labels)
        self.clips = [
            replace(
                clip,
                label=tuple(sorted(place[label] for label in clip.label if label in place))
                if isinstance(clip.label, tuple)
                else place[clip.label],
            )
            for clip in self.clips
        ]

    @property
    def people(self) -> tuple[str, ...]:
        """Everybody, by data set and name, however the name is spelled."""
        return tuple(sorted({" ".join(clip.person) for clip in self.clips}))

    @property
    def told(self) -> list[str]:
        """Notes and faults as sentences."""
        return [*self.notes, *map(str, self.faults)]

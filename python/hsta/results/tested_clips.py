"""Predictions of test clips as files: a table, and the log that MEGC 2019 asks for."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.clips import Clip, Label
from ..errors import UserError
from ..files import read_rows, write_text
from .answer import answer, named


@dataclass(frozen=True)
class Prediction:
    """What a model that never saw the subject said of a clip. ``truth`` and ``label`` index the classes, or are tuples
    of action units, which do.
    """

    dataset: str
    subject: str
    clip: str
    truth: Label
    probabilities: tuple[float, ...]

    @classmethod
    def of(cls, clip: Clip, probabilities: Sequence[float]) -> Prediction:
        return cls(clip.dataset, clip.subject, clip.name, clip.label, tuple(probabilities))

    @property
    def label(self) -> Label:
        return answer(self.probabilities, isinstance(self.truth, tuple))


def write_csv(path: Path, predictions: Sequence[Prediction], class_names: Sequence[str]) -> None:
    """``dataset,subject,clip,truth,prediction,prob_<class>…``, classes by name, action units as ``AU1+AU2``."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_header(class_names))
    for p in predictions:
        names = (named(label, class_names) for label in (p.truth, p.label))
        writer.writerow([p.dataset, p.subject, p.clip, *names, *map(repr, p.probabilities)])
    write_text(path, table.getvalue())


def read_csv(path: Path, class_names: Sequence[str], action_units: bool = False) -> list[Prediction]:
    """What `write_csv` wrote. Raises `UserError` for another table, other classes or a damaged file."""
    header = _header(class_names)
    header_read, *rows = read_rows(path) or [[]]
    if header_read != header:
        raise UserError(f"{path} must have the columns {','.join(header)}, got {','.join(header_read)}")

    def label(written: str) -> Label:
        if action_units:
            return tuple(class_names.index(name) for name in written.split("+") if name)
        return class_names.index(written)

    def probabilities(written: list[str]) -> tuple[float, ...]:
        if len(written) != len(class_names):
            raise ValueError(f"a clip has {len(written)} probabilities, not {len(class_names)}")
        return tuple(map(float, written))

    try:
        return [
            Prediction(dataset, subject, clip, label(truth), probabilities(numbers))
            for dataset, subject, clip, truth, _, *numbers in rows
        ]
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def write_megc_log(path: Path, predictions: Sequence[Prediction]) -> None:
    """A header ``casme2 sub01`` for each subject, then ``clip truth prediction`` for each clip of it."""
    by_subject: dict[tuple[str, str], list[str]] = {}
    for p in predictions:
        by_subject.setdefault((p.dataset, p.subject), []).append(f"{p.clip} {p.truth} {p.label}\n")
    write_text(
        path,
        "".join(f"{dataset} {subject}\n{''.join(lines)}" for (dataset, subject), lines in by_subject.items()),
    )


def _header(class_names: Sequence[str]) -> list[str]:
    return ["dataset", "subject", "clip", "truth", "prediction", *(f"prob_{name}" for name in class_names)]

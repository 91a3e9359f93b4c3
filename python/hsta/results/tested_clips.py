"""Predictions of test clips as files: a table, and the log that MEGC 2019 asks for."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.clips import Clip
from ..errors import UserError
from ..files import write_text


@dataclass(frozen=True)
class Prediction:
    """What a model that never saw the subject said of a clip. ``truth`` and ``label`` index the classes."""

    dataset: str
    subject: str
    clip: str
    truth: int
    probabilities: tuple[float, ...]

    @classmethod
    def of(cls, clip: Clip, probabilities: Sequence[float]) -> Prediction:
        return cls(clip.dataset, clip.subject, clip.name, clip.label, tuple(probabilities))

    @property
    def label(self) -> int:
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)


def write_csv(path: Path, predictions: Sequence[Prediction], class_names: Sequence[str]) -> None:
    """``dataset,subject,clip,truth,prediction,prob_<class>…``, classes by name."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_header(class_names))
    for p in predictions:
        named = class_names[p.truth], class_names[p.label]
        writer.writerow([p.dataset, p.subject, p.clip, *named, *map(repr, p.probabilities)])
    write_text(path, table.getvalue())


def read_csv(path: Path, class_names: Sequence[str]) -> list[Prediction]:
    """What `write_csv` wrote. Raises `UserError` for another table, other classes or a damaged file."""
    header = _header(class_names)
    with path.open(encoding="utf-8", newline="") as file:
        header_read, *rows = list(csv.reader(file)) or [[]]
    if header_read != header:
        raise UserError(f"{path} must have the columns {','.join(header)}, got {','.join(header_read)}")
    try:
        return [
            Prediction(dataset, subject, clip, class_names.index(truth), tuple(map(float, numbers)))
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

"""How well intervals are spotted: precision, recall and F1 as in the spotting tasks of MEGC."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

LEAST_IOU = 0.5  # intersection over union from which an interval counts as spotted (Li et al., MEGC 2020)


@dataclass(frozen=True)
class SpottingScores:
    """Counts over all films; the rest follows from them, and is None where it would be 0 / 0."""

    true_positives: int
    spotted: int
    truth: int

    @property
    def precision(self) -> float | None:
        return self.true_positives / self.spotted if self.spotted else None

    @property
    def recall(self) -> float | None:
        return self.true_positives / self.truth if self.truth else None

    @property
    def f1(self) -> float | None:
        both = self.spotted + self.truth
        return 2 * self.true_positives / both if both else None

    def to_dict(self) -> dict[str, int | float | None]:
        """As JSON holds it."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "true_positives": self.true_positives,
            "false_positives": self.spotted - self.true_positives,
            "false_negatives": self.truth - self.true_positives,
        }


Seconds = tuple[float, float]


def score_intervals(films: Iterable[tuple[Sequence[Seconds], Sequence[Seconds]]]) -> SpottingScores:
    """Scores of all ``films`` together: of each, its true and its spotted intervals (onset and offset in seconds)."""
    matched = spotted = truth = 0
    for true_intervals, spotted_intervals in films:
        matched += _matched(true_intervals, spotted_intervals)
        truth += len(true_intervals)
        spotted += len(spotted_intervals)
    return SpottingScores(matched, spotted, truth)


def _matched(truth: Sequence[Seconds], spotted: Sequence[Seconds]) -> int:
    """How many are matched, each at most once, the most alike first."""
    alike = sorted(((iou(a, b), i, j) for i, a in enumerate(truth) for j, b in enumerate(spotted)), reverse=True)
    rows: set[int] = set()
    columns: set[int] = set()
    for share, i, j in alike:
        if share >= LEAST_IOU and i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
    return len(rows)


def iou(a: Seconds, b: Seconds) -> float:
    """Intersection over union of two intervals; 0 for two that are one and the same moment."""
    together = max(min(a[1], b[1]) - max(a[0], b[0]), 0.0)
    union = a[1] - a[0] + b[1] - b[0] - together
    return together / union if union else 0.0


def read_truth(path: Path) -> dict[Path, list[Seconds]]:
    """Intervals by the resolved path of their film, from a csv table with columns file, onset and offset (seconds).

    A file's path counts from the table's folder. Raises `UserError` when a column is missing or a row is no interval.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            missing = {"file", "onset", "offset"} - set(table.fieldnames or ())
            if missing:
                raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}")
            truth: dict[Path, list[Seconds]] = {}
            for row in table:
                if not row["file"]:
                    raise UserError(f"{path}, line {table.line_num}: file is missing")
                intervals = truth.setdefault((path.parent / row["file"]).resolve(), [])
                if row["onset"] or row["offset"]:  # a film without a micro-expression has a row without times
                    intervals.append(_interval(row, f"{path}, line {table.line_num}"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path} as a csv table: {error}") from error
    return truth


def _interval(row: dict[str, str], where: str) -> Seconds:
    try:
        onset, offset = float(row["onset"]), float(row["offset"])
    except (TypeError, ValueError):
        raise UserError(f"{where}: onset and offset must be seconds, got {row['onset']} and {row['offset']}") from None
    if not 0 <= onset <= offset < float("inf"):
        raise UserError(f"{where}: onset and offset must be in order, got {onset:g} and {offset:g}")
    return onset, offset

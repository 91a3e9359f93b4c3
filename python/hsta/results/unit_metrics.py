"""F1 of action units, from the predictions of all folds together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .metrics import mean_defined, number, share


@dataclass(frozen=True)
class UnitScores:
    """``counts`` int64 (U, 4): of each action unit the clips TP, FP, FN and TN. The rest follows from them.

    F1 is that of MEB, the micro-expression benchmark (Varanka, Li, Peng and Zhao, "Data Leakage and Evaluation Issues
    in Micro-Expression Analysis", 2023; github.com/tvaranka/meb, whose cross-dataset protocol CD6ME has the units 1, 2,
    4, 5, 6, 7, 9, 10, 12, 14, 15 and 17): the binary F1 of each unit, of the predictions of all folds together, and its
    mean over the units; a unit is told where its probability is above 1/2. As in `Scores`, and other than there, where
    it counts 0, a unit that no clip shows and that is never told has no F1 and is left out of the mean; one that is
    told all the same has 0.
    """

    counts: np.ndarray
    class_names: tuple[str, ...]

    FIGURES: ClassVar = {"mean_f1": "F1"}

    @property
    def support(self) -> np.ndarray:
        """Clips that show each unit, int64 (U,)."""
        return self.counts[:, 0] + self.counts[:, 2]

    @property
    def predicted(self) -> np.ndarray:
        """Clips of which each unit was told, int64 (U,)."""
        return self.counts[:, 0] + self.counts[:, 1]

    @property
    def right(self) -> np.ndarray:
        """Clips that show each unit and of which it was told, int64 (U,)."""
        return self.counts[:, 0]

    @property
    def absent(self) -> tuple[str, ...]:
        """Units that no clip shows."""
        return tuple(name for name, n in zip(self.class_names, self.support, strict=True) if n == 0)

    @property
    def f1(self) -> np.ndarray:
        """2 TP / (2 TP + FP + FN) of each unit, float64 (U,)."""
        return unit_f1(self.counts)

    @property
    def mean_f1(self) -> float:
        """The mean of `f1` over the units; NaN where none has one."""
        return float(mean_defined(self.f1))

    @property
    def chance(self) -> float:
        """`mean_f1` of telling every unit of every clip, which needs no looking."""
        return float(share(2 * self.support, self.support + self.counts.sum(axis=1)).mean())

    def to_dict(self) -> dict:
        """As JSON holds it; what is undefined is null."""
        per_unit = {
            name: {"f1": number(f1), "support": int(n), "predicted": int(predicted), "true_positives": int(right)}
            for name, f1, n, predicted, right in zip(
                self.class_names, self.f1, self.support, self.predicted, self.right, strict=True
            )
        }
        return {
            "mean_f1": number(self.mean_f1),
            "mean_f1_if_all_are_told": self.chance,
            "class_names": list(self.class_names),
            "absent_units": list(self.absent),
            "per_unit": per_unit,
        }


def score_units(
    truth: Sequence[tuple[int, ...]], prediction: Sequence[tuple[int, ...]], class_names: Sequence[str]
) -> UnitScores:
    """Scores of predictions, both sequences having the units of each clip, which index ``class_names``.

    Raises ValueError when there are none, when the numbers differ or for what is no unit.
    """
    if len(truth) != len(prediction) or not truth:
        raise ValueError(f"truth and prediction must be of as many clips, got {len(truth)} and {len(prediction)}")
    shown, told = (np.zeros((len(truth), len(class_names)), bool) for _ in range(2))
    for name, table, labels in (("truth", shown, truth), ("prediction", told, prediction)):
        for row, units in zip(table, labels, strict=True):
            if any(not 0 <= unit < len(class_names) for unit in units):
                raise ValueError(f"{name} must be units from 0 to {len(class_names) - 1}, got {units}")
            row[list(units)] = True
    cells = [shown & told, ~shown & told, shown & ~told, ~shown & ~told]
    return UnitScores(np.stack([cell.sum(axis=0) for cell in cells], axis=1), tuple(class_names))


def unit_f1(counts: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of each unit, float64 (..., U), of ``counts`` (..., U, 4) as in `UnitScores`."""
    right, false, missed = counts[..., 0], counts[..., 1], counts[..., 2]
    return share(2 * right, 2 * right + false + missed)

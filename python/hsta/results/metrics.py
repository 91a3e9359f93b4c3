"""The field's scores, computed from one confusion matrix of all predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Scores:
    """``matrix`` int64 (C, C): rows are the truth, columns the prediction. The rest follows from it.

    A class of which the data hold no clip is never scored 1: it is named in `absent`, its recall is undefined
    and its F1 is 0 where it was predicted all the same, else undefined. Undefined values (NaN) are left out
    of the means, as scikit-learn does with ``zero_division=nan``.
    """

    matrix: np.ndarray
    class_names: tuple[str, ...]

    FIGURES: ClassVar = {"uf1": "UF1", "uar": "UAR", "accuracy": "accuracy"}

    @property
    def support(self) -> np.ndarray:
        """Clips of each class, int64 (C,)."""
        return self.matrix.sum(axis=1)

    @property
    def predicted(self) -> np.ndarray:
        """Clips of which each class was told, int64 (C,)."""
        return self.matrix.sum(axis=0)

    @property
    def right(self) -> np.ndarray:
        """Clips of each class that were told right, int64 (C,)."""
        return np.diag(self.matrix)

    @property
    def absent(self) -> tuple[str, ...]:
        """Classes that the data do not hold."""
        return tuple(name for name, n in zip(self.class_names, self.support, strict=True) if n == 0)

    @property
    def f1(self) -> np.ndarray:
        """2 TP / (2 TP + FP + FN) of each class, float64 (C,)."""
        return class_f1(self.matrix)

    @property
    def recall(self) -> np.ndarray:
        """TP / n of each class, float64 (C,)."""
        return class_recall(self.matrix)

    @property
    def uf1(self) -> float:
        """Unweighted F1: the mean of `f1` (See et al., MEGC 2019)."""
        return float(mean_defined(self.f1))

    @property
    def uar(self) -> float:
        """Unweighted average recall: the mean of `recall`, which is balanced accuracy."""
        return float(mean_defined(self.recall))

    @property
    def accuracy(self) -> float:
        """Share of all clips that were told right."""
        return float(np.trace(self.matrix) / self.matrix.sum())

    @property
    def chance(self) -> float:
        """What guessing gives."""
        return 1 / len(self.class_names)

    def to_dict(self) -> dict:
        """As JSON holds it; what is undefined is null."""
        per_class = {
            name: {
                "f1": number(f1),
                "recall": number(recall),
                "support": int(n),
                "predicted": int(predicted),
            }
            for name, f1, recall, n, predicted in zip(
                self.class_names, self.f1, self.recall, self.support, self.predicted, strict=True
            )
        }
        return {
            "uf1": self.uf1,
            "uar": self.uar,
            "accuracy": self.accuracy,
            "confusion_matrix": self.matrix.tolist(),
            "class_names": list(self.class_names),
            "absent_classes": list(self.absent),
            "per_class": per_class,
        }


def score(truth: Sequence[int], prediction: Sequence[int], class_names: Sequence[str]) -> Scores:
    """Scores of predictions, both sequences being labels that index ``class_names``.

    Raises ValueError when there are none, when the numbers differ or for a label that is no class.
    """
    rows, columns = np.asarray(truth), np.asarray(prediction)
    if rows.shape != columns.shape or rows.ndim != 1 or not rows.size:
        raise ValueError(f"truth and prediction must be as many labels, got {rows.shape} and {columns.shape}")
    count = len(class_names)
    for name, labels in (("truth", rows), ("prediction", columns)):
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= count:
            raise ValueError(f"{name} must be labels from 0 to {count - 1}, got {np.unique(labels).tolist()}")
    matrix = np.zeros((count, count), np.int64)
    np.add.at(matrix, (rows, columns), 1)
    return Scores(matrix, tuple(class_names))


def class_f1(matrix: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of each class, float64 (..., C), of confusion matrices (..., C, C)."""
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    return share(2 * right, matrix.sum(axis=-2) + matrix.sum(axis=-1))


def class_recall(matrix: np.ndarray) -> np.ndarray:
    """TP / n of each class, float64 (..., C), of confusion matrices (..., C, C)."""
    return share(np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-1))


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part`` / ``whole``, NaN where there is nothing to have a share of."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def mean_defined(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of what is defined; NaN where nothing is."""
    return share(np.nansum(values, axis=-1), (~np.isnan(values)).sum(axis=-1))


def number(value: float) -> float | None:
    """As JSON holds it."""
    return None if np.isnan(value) else float(value)

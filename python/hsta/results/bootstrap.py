"""How sure figures are, by subjects: clips of one person resemble each other, so that people are drawn, not clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.names import name_key
from ..data.natural_order import natural_key
from .metrics import Scores, class_f1, class_recall, mean_defined
from .scoring import scores_of
from .tested_clips import Prediction
from .unit_metrics import UnitScores, unit_f1

DRAWS = 2000
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class Subjects:
    """What was told of each person's clips.

    ``people`` are data set and name, in natural order. ``counts``, int64 (S, ...), have for each of them the confusion
    matrix (C, C), or of action units the counts (U, 4) of `UnitScores`: their sum is that of all clips.
    """

    people: tuple[tuple[str, str], ...]
    counts: np.ndarray
    class_names: tuple[str, ...]
    action_units: bool

    @classmethod
    def of(cls, predictions: Sequence[Prediction], class_names: Sequence[str], action_units: bool) -> Subjects:
        by_person: dict[tuple[str, str], list[Prediction]] = {}
        for p in predictions:
            by_person.setdefault((p.dataset, name_key(p.subject)), []).append(p)
        order = sorted(by_person, key=lambda person: ([natural_key(part) for part in person], person))
        scores = [scores_of(by_person[person], class_names) for person in order]
        return cls(
            tuple((person[0], by_person[person][0].subject) for person in order),
            np.stack([s.matrix if isinstance(s, Scores) else s.counts for s in scores]),
            tuple(class_names),
            action_units,
        )

    @property
    def scores(self) -> Scores | UnitScores:
        """Of all clips together."""
        total = self.counts.sum(axis=0)
        return UnitScores(total, self.class_names) if self.action_units else Scores(total, self.class_names)

    @property
    def datasets(self) -> dict[str, Subjects]:
        """The people of each data set; none where there is one."""
        names = list(dict.fromkeys(dataset for dataset, _ in self.people))
        if len(names) < 2:
            return {}
        parts = {}
        for name in names:
            places = [place for place, (dataset, _) in enumerate(self.people) if dataset == name]
            people = tuple(self.people[place] for place in places)
            parts[name] = Subjects(people, self.counts[places], self.class_names, self.action_units)
        return parts

    def clips(self) -> np.ndarray:
        """Of each person, int64 (S,)."""
        return self.counts[:, 0].sum(axis=-1) if self.action_units else self.counts.sum(axis=(1, 2))


def figures(counts: np.ndarray, action_units: bool) -> dict[str, np.ndarray]:
    """The figures of `Scores` or `UnitScores` by their names, of many counts (..., C, C) or (..., U, 4) at once.

    Each has the shape (...), those of each class or unit (..., C) or (..., U). As there, what is undefined is NaN and
    left out of means.
    """
    if action_units:
        f1 = unit_f1(counts)
        return {"mean_f1": mean_defined(f1), "f1": f1}
    f1, recall = class_f1(counts), class_recall(counts)
    accuracy = np.trace(counts, axis1=-2, axis2=-1) / counts.sum(axis=(-2, -1))
    return {"uf1": mean_defined(f1), "uar": mean_defined(recall), "accuracy": accuracy, "f1": f1, "recall": recall}


def draw(counts: np.ndarray) -> np.ndarray:
    """`DRAWS` times as many people as there are, with replacement: the sums of their ``counts`` (S, ...), (D, ...).

    Counts of as many people are drawn the same way each time, so that two evaluations of the same people are compared
    draw by draw.
    """
    number = len(counts)
    times = np.random.default_rng(SEED).multinomial(number, np.full(number, 1 / number), size=DRAWS)
    flat = counts.reshape(number, -1).astype(float)  # a product of floats is fast, and of such numbers exact
    return (times.astype(float) @ flat).reshape(DRAWS, *counts.shape[1:])


def interval(drawn: np.ndarray) -> np.ndarray:
    """Lower and upper end of the middle `LEVEL` of what was drawn (D, ...), as (2, ...).

    Draws in which a figure is undefined are left out; NaN where it is in all of them.
    """
    ends = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    flat = drawn.reshape(len(drawn), -1)
    columns = [column[~np.isnan(column)] for column in flat.T]
    found = [np.quantile(column, ends) if column.size else np.full(2, np.nan) for column in columns]
    return np.stack(found, axis=1).reshape(2, *drawn.shape[1:])


def intervals(*repeats: Subjects) -> dict[str, np.ndarray] | None:
    """The `interval` of each of the `figures`, as (2, ...); None of one person, from whom nothing can be drawn.

    Of several evaluations of the same people it is that of their mean: each draw takes the same people of all.
    """
    if len(repeats[0].people) < 2:
        return None
    drawn = [figures(draw(one.counts), one.action_units) for one in repeats]
    return {name: interval(mean_defined(np.stack([one[name] for one in drawn], axis=-1))) for name in drawn[0]}

"""Evaluations of the same clips side by side, with tests that pair the subjects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from . import bootstrap
from .answer import named
from .bootstrap import Subjects, draw, figures, interval
from .evaluated import Evaluated

PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Difference:
    """Of a figure to that of the first evaluation: ``interval`` None where nothing can be drawn from one subject."""

    value: float
    interval: tuple[float, float] | None
    p_value: float


@dataclass(frozen=True)
class Compared:
    """One evaluation. ``figures`` and ``intervals`` by the names of `Scores.FIGURES`; no differences of the first."""

    evaluated: Evaluated
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]] | None
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Comparison:
    rows: list[Compared]
    names: dict[str, str]
    """The figures that are compared, by their names in `Compared`, as they are written."""
    subjects: int
    clips: int
    exact: bool
    """All permutations were counted; else `PERMUTATIONS` of them were drawn."""

    @property
    def sentences(self) -> list[str]:
        """What the figures are, for under a table."""
        how = (
            f"all {2**self.subjects:,} permutations"
            if self.exact
            else f"{PERMUTATIONS:,} random permutations, seed {bootstrap.SEED}"
        )
        first = self.rows[0].evaluated.folder
        told = [
            f"{self.clips:,} clips of {self.subjects:,} subjects.",
            f"In brackets {bootstrap.LEVEL:.0%} intervals: percentile bootstrap over subjects, {bootstrap.DRAWS:,} "
            f"draws, seed {bootstrap.SEED}, the same draws for all.",
            f"Differences are to {first}; p by a two-sided permutation test that exchanges the two evaluations' "
            f"predictions of whole subjects ({how}).",
        ]
        if len(self.rows) > 2:
            told.append("p values are not corrected for the number of comparisons.")
        for row in self.rows:
            if row.evaluated.metrics.get("shuffled_labels"):
                told.append(f"{row.evaluated.folder} is a control: labels were shuffled in training.")
        return told

    @property
    def generated(self) -> bool:
        return any(row.evaluated.metrics.get("generated_data") for row in self.rows)


def compare(several: Sequence[Evaluated]) -> Comparison:
    """UF1 and UAR, or mean F1 of action units, of evaluations, and the differences of each to the first.

    Raises `UserError` where they are not of the same clips with the same labels.
    """
    first, *others = several
    for other in others:
        check_same(first, other)
    subjects = [one.subjects() for one in several]
    drawn = [figures(draw(one.counts), one.action_units) for one in subjects]
    told = subjects[0].scores.FIGURES
    names = {name: written for name, written in told.items() if name != "accuracy"}
    people, exact = len(subjects[0].people), 2 ** len(subjects[0].people) <= PERMUTATIONS
    rows: list[Compared] = []
    for evaluated, one, draws in zip(several, subjects, drawn, strict=True):
        intervals = {name: _ends(draws[name]) for name in names} if people > 1 else None
        differences = {}
        if rows:
            p_values = permutation_test(subjects[0], one)
            for name in names:
                by = getattr(one.scores, name) - rows[0].figures[name]
                ends = _ends(draws[name] - drawn[0][name]) if people > 1 else None
                differences[name] = Difference(by, ends, p_values[name])
        rows.append(Compared(evaluated, {name: getattr(one.scores, name) for name in names}, intervals, differences))
    return Comparison(rows, names, people, int(subjects[0].clips().sum()), exact)


def permutation_test(first: Subjects, second: Subjects) -> dict[str, float]:
    """Two-sided p values of the figures' differences, were both evaluations as good.

    Then, for any subject, the two sets of predictions could as well be exchanged. Where there are at most
    `PERMUTATIONS` ways to exchange those of some subjects, all are counted; else so many are drawn, and what was
    observed counts as one of them (Phipson and Smyth, 2010), so that p is never 0. Subjects are in the same order.
    """
    people = len(first.people)
    if 2**people <= PERMUTATIONS:
        swapped = (np.arange(2**people)[:, None] >> np.arange(people)) & 1
        added = 0
    else:
        swapped = np.random.default_rng(bootstrap.SEED).integers(0, 2, (PERMUTATIONS, people))
        added = 1
    shape = first.counts.shape[1:]
    gained = (swapped.astype(float) @ (second.counts - first.counts).reshape(people, -1)).reshape(-1, *shape)
    one, other = first.counts.sum(axis=0), second.counts.sum(axis=0)
    apart = _apart(one + gained, other - gained, first.action_units)
    p_values = {}
    for name, observed in _apart(one, other, first.action_units).items():
        # Equal differences may differ in their last bits; an undefined one, of units, is as large as none.
        larger = np.count_nonzero(~(apart[name] < observed - 1e-12))
        p_values[name] = float((larger + added) / (len(swapped) + added))
    return p_values


def _apart(first: np.ndarray, second: np.ndarray, action_units: bool) -> dict[str, np.ndarray]:
    one, other = figures(first, action_units), figures(second, action_units)
    return {name: abs(other[name] - one[name]) for name in one if one[name].ndim == first.ndim - 2}


def _ends(drawn: np.ndarray) -> tuple[float, float]:
    low, high = interval(drawn)
    return float(low), float(high)


def check_same(first: Evaluated, other: Evaluated) -> None:
    """Raises `UserError` where two evaluations are not of the same clips with the same labels, naming some."""
    where = f"{first.folder} and {other.folder}"
    for what in ("class_names", "action_units"):
        one, two = (getattr(evaluated, what) for evaluated in (first, other))
        if one != two:
            told = " and ".join(
                ", ".join(evaluated.class_names) + (" (action units)" if evaluated.action_units else "")
                for evaluated in (first, other)
            )
            raise UserError(f"{where} do not have the same classes in the same order: {told}")
    clips, others = (_clips(evaluated) for evaluated in (first, other))
    faults = []
    for clip in dict.fromkeys([*clips, *others]):
        here, there = clips.get(clip, Counter()), others.get(clip, Counter())
        if here == there:
            continue
        labels = (" and ".join(label or "no action unit" for label in found.elements()) for found in (here, there))
        one, two = (label or "not there" for label in labels)
        faults.append(f"{' '.join(clip)} is {one} in {first.folder} and {two} in {other.folder}")
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(f"{where} are not of the same clips and labels: {'; '.join(faults[:3])}{more}")


def _clips(evaluated: Evaluated) -> dict[tuple[str, str, str], Counter[str]]:
    """The labels of each clip by data set, subject and name: one, or more where more folds test it."""
    found: dict[tuple[str, str, str], Counter[str]] = {}
    for p in evaluated.predictions():
        labels = found.setdefault((p.dataset, p.subject, p.clip), Counter())
        labels[named(p.truth, evaluated.class_names)] += 1
    return found

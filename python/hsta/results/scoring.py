"""The scores of predictions, be it of classes or of action units."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.clips import classes_of
from .metrics import Scores, score
from .tested_clips import Prediction
from .unit_metrics import UnitScores, score_units


def scores_of(predictions: Sequence[Prediction], class_names: Sequence[str]) -> Scores | UnitScores:
    truth, told = [classes_of(p.truth) for p in predictions], [classes_of(p.label) for p in predictions]
    if isinstance(predictions[0].truth, tuple):
        return score_units(truth, told, class_names)
    return score([label for (label,) in truth], [label for (label,) in told], class_names)


def slices(predictions: Sequence[Prediction], class_names: Sequence[str]) -> dict[str, Scores | UnitScores]:
    """The scores of each data set's part of the same predictions, as MEGC 2019 gives them; none where there is one."""
    datasets = dict.fromkeys(p.dataset for p in predictions)
    if len(datasets) < 2:
        return {}
    return {name: scores_of([p for p in predictions if p.dataset == name], class_names) for name in datasets}

"""Which of the tested clips serve as examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..data.clips import classes_of
from ..data.names import name_key
from ..errors import UserError
from .tested_clips import Prediction

MOST = 6
RULE = (
    "Of each class, or action unit, these are the clip that was rightly told to show it with the highest probability, "
    "and the one that was wrongly told to. What more clips show comes first, and there are at most "
    f"{MOST} examples."
)


def most_certain(predictions: Sequence[Prediction]) -> dict[tuple[int, bool], Prediction]:
    """For each class that is told, rightly or not, the prediction with the highest probability of it; of equals the
    first. Those of several folds together are among those of each fold."""
    best: dict[tuple[int, bool], Prediction] = {}
    for prediction in predictions:
        for label in classes_of(prediction.label):
            key = label, label in classes_of(prediction.truth)
            if key not in best or prediction.probabilities[label] > best[key].probabilities[label]:
                best[key] = prediction
    return best


def examples(predictions: Sequence[Prediction]) -> dict[Prediction, int]:
    """At most `MOST` by the `RULE`, each with the class that it was chosen for; a clip that shows several action units
    serves once."""
    shown = Counter(label for prediction in predictions for label in classes_of(prediction.truth))
    best = most_certain(predictions)
    chosen: dict[Prediction, int] = {}
    for label, right in sorted(best, key=lambda key: (-shown[key[0]], key[0], not key[1])):
        chosen.setdefault(best[label, right], label)
    return dict(list(chosen.items())[:MOST])


def of_subjects(predictions: Sequence[Prediction], names: Sequence[str]) -> list[Prediction]:
    """Those of the subjects that ``names`` has, as ``sub01`` or, of one of several data sets, ``casme2/sub01``.

    Raises `UserError` for a name that is nobody's, and for one that two people have.
    """
    people = {(prediction.dataset, name_key(prediction.subject)) for prediction in predictions}
    named = set()
    for name in names:
        *dataset, subject = name.rsplit("/", 1)
        found = {person for person in people if person[1] == name_key(subject) and dataset in ([], [person[0]])}
        if not found:
            raise UserError(f"no subject {name} was tested")
        if len(found) > 1:
            several = ", ".join(f"{dataset}/{subject}" for dataset, _ in sorted(found))
            raise UserError(f"there are several subjects {name}: name one of {several}")
        named |= found
    return [one for one in predictions if (one.dataset, name_key(one.subject)) in named]

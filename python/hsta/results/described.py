"""Everything that a report says of an evaluation, as JSON holds it."""

from __future__ import annotations

from collections.abc import Mapping

from . import bootstrap
from .bootstrap import Subjects
from .evaluated import Evaluated
from .learning_curves import Curve
from .metrics import Scores, number

PROTOCOLS = {
    "loso": "Leave one subject out: each fold trains new weights on all subjects but one, and tests that one.",
    "leave-subjects-out": "Subjects are tested in groups: each fold trains new weights on the subjects of all other "
    "groups, and tests those of one.",
    "cross-dataset": "Cross-dataset: each fold trains new weights on all data sets but one, and tests that one.",
    "authors-folds": "The folds are those that tables of the data set name. They may train on people whom they test, "
    "so that the scores may say nothing about people who were not seen.",
}
ALWAYS = "The weights of the last epoch are tested: no epoch, and nothing else, is chosen on those who are tested."
OF_CLASSES = (
    "The predictions of all folds are put into one confusion matrix. UF1 is the mean over the classes of F1, "
    "2 TP / (2 TP + FP + FN); UAR is the mean over the classes of recall, TP / n. A class of which there is no clip "
    "has no recall, and F1 0 where it was predicted all the same, else none; what is undefined is left out of the "
    "means."
)
OF_UNITS = (
    "The predictions of all folds are counted together. The F1 of an action unit is 2 TP / (2 TP + FP + FN), the unit "
    "being told where its probability is above 1/2, and the mean is over the units; a unit that no clip shows and that "
    "is never told has no F1 and is left out of it."
)
SHUFFLED = "A control: the labels were dealt out anew in training, so that the scores must be at chance."


def describe(evaluated: Evaluated, subjects: Subjects, curves: Mapping[str, Curve]) -> dict:
    """The contents of report.json; undefined numbers are null, and ``left_out`` says what the folder lacks."""
    metrics, scores = evaluated.metrics, subjects.scores
    known = ("dataset", "generated_data", "model", "protocol", "folds", "shuffled_labels", "seed", "device", "versions")
    values = {
        "evaluation": str(evaluated.folder),
        **{name: metrics[name] for name in known if name in metrics},
        "subjects": len(subjects.people),
        "clips": int(subjects.clips().sum()),
        "protocol_in_words": _protocol(evaluated),
        "intervals_in_words": intervals_in_words(len(subjects.people)),
        "bootstrap": {"draws": bootstrap.DRAWS, "seed": bootstrap.SEED, "level": bootstrap.LEVEL},
        "chance": scores.chance,
        **_figures(subjects),
        "by_dataset": {
            name: {"subjects": len(part.people), "clips": int(part.clips().sum()), **_figures(part)}
            for name, part in subjects.datasets.items()
        },
        "by_subject": [
            {"dataset": dataset, "subject": name, "clips": int(clips), **_figures(alone, drawn=False)}
            for (dataset, name), clips, alone in zip(subjects.people, subjects.clips(), _each(subjects), strict=True)
        ],
        "learning_curves": {
            fold: {"loss": list(curve.losses), "learning_rate": list(curve.learning_rates)}
            for fold, curve in curves.items()
        },
        "arguments": None
        if evaluated.arguments is None
        else {name: value for name, value in evaluated.arguments.items() if name not in ("contents", "versions")},
        **{name: metrics.get(name) for name in ("notes", "faults", "lost_clips")},
    }
    return values | {"left_out": _left_out(evaluated, subjects, curves)}


def intervals_in_words(people: int) -> str:
    return (
        f"Intervals are the middle {bootstrap.LEVEL:.0%} of {bootstrap.DRAWS:,} bootstrap draws over subjects "
        f"(percentile method, seed {bootstrap.SEED}): each draws as many whole subjects as there are, {people}, with "
        "replacement, and computes the score of all their clips. They say how sure the score is of "
        "other people, not of other seeds."
    )


def _protocol(evaluated: Evaluated) -> list[str]:
    metrics = evaluated.metrics
    told = [PROTOCOLS.get(metrics.get("protocol", ""), ""), ALWAYS, OF_UNITS if evaluated.action_units else OF_CLASSES]
    return [*filter(None, told), *([SHUFFLED] if metrics.get("shuffled_labels") else [])]


def _figures(subjects: Subjects, drawn: bool = True) -> dict:
    """Scores, each class or unit, and the confusion matrix; ``drawn`` with intervals."""
    scores = subjects.scores
    values = bootstrap.figures(subjects.counts.sum(axis=0), subjects.action_units)
    ends = bootstrap.intervals(subjects) if drawn else None

    def figure(name: str, *place: int) -> dict:
        told = {"value": number(values[name][place])}
        if ends is None:
            return told
        return told | {"interval": [number(end) for end in ends[name].T[place]]}

    each = "per_unit" if subjects.action_units else "per_class"
    result: dict = {
        "scores": {name: figure(name) for name in scores.FIGURES},
        each: {
            name: {
                **{key: figure(key, place) for key in ("f1", "recall") if key in values},
                "clips": int(scores.support[place]),
                "predicted": int(scores.predicted[place]),
                "right": int(scores.right[place]),
            }
            for place, name in enumerate(subjects.class_names)
        },
    }
    if isinstance(scores, Scores):
        result["confusion_matrix"] = scores.matrix.tolist()
    return result


def _each(subjects: Subjects) -> list[Subjects]:
    return [
        Subjects((person,), counts[None], subjects.class_names, subjects.action_units)
        for person, counts in zip(subjects.people, subjects.counts, strict=True)
    ]


def _left_out(evaluated: Evaluated, subjects: Subjects, curves: Mapping[str, Curve]) -> list[str]:
    metrics, missing = evaluated.metrics, []
    if len(subjects.people) < 2:
        missing.append("Intervals: from one subject nothing can be drawn.")
    elif alone := [name for name, part in subjects.datasets.items() if len(part.people) < 2]:
        missing.append(f"Intervals of {', '.join(alone)}: from one subject nothing can be drawn.")
    folds = metrics.get("folds", 0)
    if len(curves) < max(folds, 1):
        missing.append(f"Learning curves: the folder has those of {len(curves)} of {folds} folds.")
    if evaluated.arguments is None:
        missing.append("The arguments of the run: the folder has no config.json.")
    if metrics.get("protocol") not in PROTOCOLS:
        missing.append("The protocol: metrics.json names none that is known.")
    if not metrics.get("versions"):
        missing.append("Versions: metrics.json has none.")
    if metrics.get("faults") is None or metrics.get("notes") is None:
        missing.append("Notes and faults of the data: metrics.json does not have them, as in versions that kept none.")
    return missing

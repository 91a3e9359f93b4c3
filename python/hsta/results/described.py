"""Everything that a report says of an evaluation, as JSON holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..data.clips import classes_of
from . import bootstrap
from .answer import named
from .attention import Example
from .bootstrap import Subjects
from .evaluated import Evaluated
from .examples import RULE
from .learning_curves import Curve
from .metrics import Scores, mean_defined, number
from .repeats import Repeats

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
TUNED = (
    "The recipe of each fold was chosen by hsta tune on people whom the fold does not test; a recipe that was chosen "
    "on them is refused."
)
LOOKED = (
    "Shaded is the attention of the CLS token of the video branch to the patches, in its last layer over space and in "
    "the mean over the heads: those without shade get nothing, and those of the strongest four times the mean over the "
    "clip's, or more. Under each moment is what all its patches get, of 100% that CLS gives to all moments and to "
    "itself; the curve shows it over the frames."
)
NO_FACES = "The faces are left out; hsta report --faces shows them."
FACES = "Of each moment the first frame is shown. Who of a data set may be shown, and where, its licence tells."
SHUFFLED = "A control: the labels were dealt out anew in training, so that the scores must be at chance."


def describe(
    repeats: Repeats,
    each: Sequence[Subjects],
    curves: Sequence[Mapping[str, Curve]],
    examples: Sequence[Example],
    missing_examples: int,
    examples_of: Sequence[str] = (),
) -> dict:
    """The contents of report.json; undefined numbers are null, and ``left_out`` says what the folder lacks.

    ``each`` and ``curves`` are those of each seed, ``examples`` of the first, which lacks ``missing_examples`` more;
    they are of all subjects, or of those that ``examples_of`` names. Of several seeds figures are means over them with
    their sample standard deviations, and counts are sums.
    """
    evaluated, subjects = repeats.first, each[0]
    metrics, scores = evaluated.metrics, subjects.scores
    known = ("dataset", "generated_data", "model", "protocol", "folds", "shuffled_labels", "seed", "device", "versions")
    values = {
        "evaluation": str(repeats.folder),
        **{name: metrics[name] for name in known if name in metrics},
        **_seeds(repeats, each),
        "subjects": len(subjects.people),
        "clips": int(subjects.clips().sum()),
        "protocol_in_words": _protocol(evaluated),
        "intervals_in_words": intervals_in_words(len(subjects.people), len(each)),
        "bootstrap": {"draws": bootstrap.DRAWS, "seed": bootstrap.SEED, "level": bootstrap.LEVEL},
        "chance": scores.chance,
        **_figures(each),
        "by_dataset": {
            name: {
                "subjects": len(part.people),
                "clips": int(part.clips().sum()),
                **_figures([one.datasets[name] for one in each]),
            }
            for name, part in subjects.datasets.items()
        },
        "by_subject": [
            {"dataset": dataset, "subject": name, "clips": int(clips), **_figures(alone, drawn=False)}
            for (dataset, name), clips, *alone in zip(
                subjects.people, subjects.clips(), *map(_alone, each), strict=True
            )
        ],
        "learning_curves": _curves(curves[0])
        if repeats.seeds is None
        else {str(seed): _curves(of_seed) for seed, of_seed in zip(repeats.seeds, curves, strict=True)},
        "attention_in_words": _attention(repeats, examples, examples_of),
        "attention": [_example(example, subjects.class_names) for example in examples],
        "arguments": None
        if evaluated.arguments is None
        else {name: value for name, value in evaluated.arguments.items() if name not in ("contents", "versions")},
        **{name: metrics.get(name) for name in ("notes", "faults", "lost_clips")},
    }
    left_out = _left_out(repeats, subjects, curves)
    if missing_examples:
        there = f"{len(examples)} of {len(examples) + missing_examples} examples"
        left_out.append(f"Attention: the folder has that of {there}; a fold keeps that of its surest predictions.")
    return values | {"left_out": left_out}


def _seeds(repeats: Repeats, each: Sequence[Subjects]) -> dict:
    """What there is to say of several seeds; nothing of one alone."""
    if repeats.seeds is None:
        return {}
    number_of = len(repeats.seeds)
    devices = dict.fromkeys(evaluated.metrics.get("device") for evaluated in repeats.several)
    return {
        "seed": list(repeats.seeds),
        "device": ", ".join(filter(None, devices)),
        "seeds_in_words": f"{number_of} evaluations of the same clips, which differ in their seeds. Scores are means "
        "over the seeds; after ± stands the sample standard deviation over them. Counts by class or unit are sums over "
        f"the seeds: there a clip counts {number_of} times.",
        "by_seed": {str(seed): _figures([one]) for seed, one in zip(repeats.seeds, each, strict=True)},
    }


def _curves(curves: Mapping[str, Curve]) -> dict:
    return {
        fold: {"loss": list(curve.losses), "learning_rate": list(curve.learning_rates)}
        for fold, curve in curves.items()
    }


def _attention(repeats: Repeats, examples: Sequence[Example], of: Sequence[str]) -> list[str]:
    if not examples:
        return []
    return [
        RULE,
        *([f"They are chosen from the clips of {', '.join(of)} alone."] if of else []),
        *([f"All are of seed {repeats.seeds[0]}."] if repeats.seeds else []),
        LOOKED,
        NO_FACES if examples[0].faces is None else FACES,
    ]


def _example(example: Example, class_names: Sequence[str]) -> dict:
    prediction, attention = example.prediction, example.attention
    return {
        "dataset": prediction.dataset,
        "subject": prediction.subject,
        "clip": prediction.clip,
        "truth": named(prediction.truth, class_names),
        "prediction": named(prediction.label, class_names),
        "chosen_for": class_names[example.label],
        "right": example.label in classes_of(prediction.truth),
        "probability": prediction.probabilities[example.label],
        "apex": attention.apex,
        "moments": [list(frames) for frames in attention.moments],
        "over_time": attention.over_time,
        "over_space": attention.weights.tolist(),
    }


def intervals_in_words(people: int, seeds: int = 1) -> str:
    if seeds > 1:
        return (
            f"Intervals of means are the middle {bootstrap.LEVEL:.0%} of {bootstrap.DRAWS:,} bootstrap draws over "
            f"subjects (percentile method, seed {bootstrap.SEED}): each draws as many whole subjects as there are, "
            f"{people}, with replacement, the same in all {seeds} evaluations, and computes the score of each of them "
            "and the mean. Those of a seed are of its own score in the same draws. They say how sure scores are of "
            "other people; the deviation says how much the score of one seed depends on the seed."
        )
    return (
        f"Intervals are the middle {bootstrap.LEVEL:.0%} of {bootstrap.DRAWS:,} bootstrap draws over subjects "
        f"(percentile method, seed {bootstrap.SEED}): each draws as many whole subjects as there are, {people}, with "
        "replacement, and computes the score of all their clips. They say how sure the score is of "
        "other people, not of other seeds."
    )


def _protocol(evaluated: Evaluated) -> list[str]:
    metrics = evaluated.metrics
    told = [PROTOCOLS.get(metrics.get("protocol", ""), ""), ALWAYS, OF_UNITS if evaluated.action_units else OF_CLASSES]
    if (evaluated.arguments or {}).get("tuned"):
        told.append(TUNED)
    return [*filter(None, told), *([SHUFFLED] if metrics.get("shuffled_labels") else [])]


def _figures(repeats: Sequence[Subjects], drawn: bool = True) -> dict:
    """Scores, each class or unit, and the confusion matrix; ``drawn`` with intervals.

    Of several evaluations of the same people: means and sample standard deviations of scores, and sums of counts.
    """
    subjects = together(repeats)
    scores = subjects.scores
    each = [bootstrap.figures(one.counts.sum(axis=0), one.action_units) for one in repeats]
    values = {name: np.stack([one[name] for one in each], axis=-1) for name in each[0]}
    ends = bootstrap.intervals(*repeats) if drawn else None

    def figure(name: str, *place: int) -> dict:
        told: dict = {"value": number(float(mean_defined(values[name][place])))}
        if len(repeats) > 1:
            told["deviation"] = number(_deviation(values[name][place]))
        if ends is None:
            return told
        return told | {"interval": [number(end) for end in ends[name].T[place]]}

    per = "per_unit" if subjects.action_units else "per_class"
    result: dict = {
        "scores": {name: figure(name) for name in scores.FIGURES},
        per: {
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


def together(repeats: Sequence[Subjects]) -> Subjects:
    """The predictions of several evaluations of the same people put together."""
    counts = np.sum([one.counts for one in repeats], axis=0)
    return Subjects(repeats[0].people, counts, repeats[0].class_names, repeats[0].action_units)


def _deviation(values: np.ndarray) -> float:
    """The sample standard deviation of what is defined, NaN of less than two."""
    defined = values[~np.isnan(values)]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else float("nan")


def _alone(subjects: Subjects) -> list[Subjects]:
    return [
        Subjects((person,), counts[None], subjects.class_names, subjects.action_units)
        for person, counts in zip(subjects.people, subjects.counts, strict=True)
    ]


def _left_out(repeats: Repeats, subjects: Subjects, curves: Sequence[Mapping[str, Curve]]) -> list[str]:
    evaluated = repeats.first
    metrics, missing = evaluated.metrics, []
    if len(subjects.people) < 2:
        missing.append("Intervals: from one subject nothing can be drawn.")
    elif alone := [name for name, part in subjects.datasets.items() if len(part.people) < 2]:
        missing.append(f"Intervals of {', '.join(alone)}: from one subject nothing can be drawn.")
    folds = metrics.get("folds", 0) * len(curves)
    kept = sum(map(len, curves))
    if kept < max(folds, 1):
        missing.append(f"Learning curves: the folder has those of {kept} of {folds} folds.")
    if evaluated.arguments is None:
        missing.append("The arguments of the run: the folder has no config.json.")
    if metrics.get("protocol") not in PROTOCOLS:
        missing.append("The protocol: metrics.json names none that is known.")
    if not metrics.get("versions"):
        missing.append("Versions: metrics.json has none.")
    if metrics.get("faults") is None or metrics.get("notes") is None:
        missing.append("Notes and faults of the data: metrics.json does not have them, as in versions that kept none.")
    return missing

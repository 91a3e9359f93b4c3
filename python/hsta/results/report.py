"""What an evaluation gave, as files and in a line: scores, the table of clips, the field's log, a picture."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.clips import DatasetIndex
from ..files import write_text
from ..generated.mark import NO_EVIDENCE
from .metrics import Scores
from .score_plots import plot_confusion_matrix, plot_unit_f1
from .scoring import scores_of, slices
from .tested_clips import Prediction, write_csv, write_megc_log
from .unit_metrics import UnitScores
from .versions import versions

FILES = ("metrics.json", "predictions.csv", "megc2019.log", "confusion_matrix.png")
UNIT_FILES = ("metrics.json", "predictions.csv", "f1_by_unit.png")  # of action units


def write_report(
    directory: Path,
    predictions: Sequence[Prediction],
    index: DatasetIndex,
    *,
    protocol: str,
    folds: int,
    shuffled_labels: bool,
    model: str,
    seed: int,
    device: str,
) -> Scores | UnitScores:
    """Write `FILES`, or `UNIT_FILES`, to ``directory`` and return the scores of all predictions together.

    metrics.json, the last, also has the scores of each data set's part of them, what was wrong in the data, and what
    the figures were made with.
    """
    subjects = len({clip.person for clip in index.clips})
    scores, parts = scores_of(predictions, index.class_names), slices(predictions, index.class_names)
    write_csv(directory / "predictions.csv", predictions, index.class_names)

    title = [f"{index.name}: {len(index.clips)} clips of {subjects} subjects, {protocol}", _figures(scores)]
    if shuffled_labels:
        title.append("control: labels shuffled in training")
    if index.generated:
        title.append(NO_EVIDENCE)
    if isinstance(scores, UnitScores):
        plot_unit_f1(directory / "f1_by_unit.png", scores, "\n".join(title))
    else:
        write_megc_log(directory / "megc2019.log", predictions)
        plot_confusion_matrix(directory / "confusion_matrix.png", scores, "\n".join(title))

    values = {
        **scores.to_dict(),
        "slices": {dataset: part.to_dict() for dataset, part in parts.items()},
        "protocol": protocol,
        "folds": folds,
        "subjects": subjects,
        "clips": len(index.clips),
        "shuffled_labels": shuffled_labels,
        "dataset": index.name,
        "generated_data": index.generated,
        "notes": index.notes,
        "faults": [str(fault) for fault in index.faults],
        "lost_clips": index.lost,
        "model": model,
        "seed": seed,
        "device": device,
        "versions": {**versions(), "python": platform.python_version()},
    }
    write_text(directory / "metrics.json", json.dumps(values, indent=2) + "\n")
    return scores


def write_seeds(directory: Path, by_seed: Mapping[int, Scores | UnitScores], index: DatasetIndex) -> None:
    """Write metrics.json of several seeds: the scores of each, their mean and sample standard deviation."""
    values: dict = {"seeds": list(by_seed)}
    for name in next(iter(by_seed.values())).FIGURES:
        figures = [getattr(scores, name) for scores in by_seed.values()]
        values[name] = {"mean": statistics.fmean(figures), "deviation": statistics.stdev(figures), "each": figures}
    values |= {"dataset": index.name, "generated_data": index.generated}
    write_text(directory / FILES[0], json.dumps(values, indent=2) + "\n")


def summary(by_seed: Mapping[int, Scores | UnitScores], index: DatasetIndex) -> str:
    """One line for people."""
    several = list(by_seed.values())
    if len(several) == 1:
        figures = _figures(several[0])
    else:
        columns = {name: [getattr(scores, key) for scores in several] for key, name in several[0].FIGURES.items()}
        figures = ", ".join(
            f"{name} {statistics.fmean(column):.3f} ± {statistics.stdev(column):.3f}"
            for name, column in columns.items()
        )
        figures += f" over {len(several)} seeds ({_chance(several[0])})"
    what = "action units" if index.action_units else "classes"
    line = f"{index.name}, {len(index.class_names)} {what}: {figures}"
    return line + (f"; {NO_EVIDENCE}" if index.generated else "")


def _figures(scores: Scores | UnitScores) -> str:
    """The scores beside what guessing gives."""
    figures = ", ".join(f"{name} {getattr(scores, key):.3f}" for key, name in scores.FIGURES.items())
    return f"{figures} ({_chance(scores)})"


def _chance(scores: Scores | UnitScores) -> str:
    what = "every unit always told" if isinstance(scores, UnitScores) else "chance"
    return f"{what} {scores.chance:.3f}"

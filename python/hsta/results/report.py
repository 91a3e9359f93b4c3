"""What an evaluation gave, as files and in a line: scores, the table of clips, the field's log, a picture."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

import hsta_kernels

from ..data.clips import DatasetIndex
from ..files import write_text
from ..generated.mark import NO_EVIDENCE
from .metrics import Scores, score
from .plots import plot_confusion_matrix
from .tested_clips import Prediction, write_csv, write_megc_log

FILES = ("metrics.json", "predictions.csv", "megc2019.log", "confusion_matrix.png")
FIGURES = ("uf1", "uar", "accuracy")


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
    device: torch.device,
) -> Scores:
    """Write `FILES` to ``directory`` and return the scores of all predictions together.

    metrics.json, the last, also has the scores of each data set's part of them and tells what the figures were made
    with.
    """
    metrics, table, log, picture = (directory / name for name in FILES)
    subjects = len({clip.person for clip in index.clips})
    scores, parts = scores_of(predictions, index.class_names), slices(predictions, index.class_names)
    write_csv(table, predictions, index.class_names)
    write_megc_log(log, predictions)

    title = [f"{index.name}: {len(index.clips)} clips of {subjects} subjects, {protocol}", _figures(scores)]
    if shuffled_labels:
        title.append("control: labels shuffled in training")
    if index.generated:
        title.append(NO_EVIDENCE)
    plot_confusion_matrix(picture, scores, "\n".join(title))

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
        "model": model,
        "seed": seed,
        "device": str(device),
        "versions": {
            "hsta-kernels": hsta_kernels.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    write_text(metrics, json.dumps(values, indent=2) + "\n")
    return scores


def scores_of(predictions: Sequence[Prediction], class_names: Sequence[str]) -> Scores:
    return score([p.truth for p in predictions], [p.label for p in predictions], class_names)


def slices(predictions: Sequence[Prediction], class_names: Sequence[str]) -> dict[str, Scores]:
    """The scores of each data set's part of the same predictions, as MEGC 2019 gives them; none where there is one."""
    datasets = dict.fromkeys(p.dataset for p in predictions)
    if len(datasets) < 2:
        return {}
    return {name: scores_of([p for p in predictions if p.dataset == name], class_names) for name in datasets}


def write_seeds(directory: Path, by_seed: Mapping[int, Scores], index: DatasetIndex) -> None:
    """Write metrics.json of several seeds: the scores of each, their mean and sample standard deviation."""
    values: dict = {"seeds": list(by_seed)}
    for name in FIGURES:
        figures = [getattr(scores, name) for scores in by_seed.values()]
        values[name] = {"mean": statistics.fmean(figures), "deviation": statistics.stdev(figures), "each": figures}
    values |= {"dataset": index.name, "generated_data": index.generated}
    write_text(directory / FILES[0], json.dumps(values, indent=2) + "\n")


def summary(by_seed: Mapping[int, Scores], index: DatasetIndex) -> str:
    """One line for people."""
    several = list(by_seed.values())
    if len(several) == 1:
        figures = _figures(several[0])
    else:
        columns = {name: [getattr(scores, name) for scores in several] for name in FIGURES}
        figures = ", ".join(
            f"{name} {statistics.fmean(column):.3f} ± {statistics.stdev(column):.3f}"
            for name, column in zip(("UF1", "UAR", "accuracy"), columns.values(), strict=True)
        )
        figures += f" over {len(several)} seeds (chance {1 / len(index.class_names):.3f})"
    line = f"{index.name}, {len(index.class_names)} classes: {figures}"
    return line + (f"; {NO_EVIDENCE}" if index.generated else "")


def _figures(scores: Scores) -> str:
    """The scores beside what guessing gives."""
    chance = 1 / len(scores.class_names)
    return f"UF1 {scores.uf1:.3f}, UAR {scores.uar:.3f}, accuracy {scores.accuracy:.3f} (chance {chance:.3f})"

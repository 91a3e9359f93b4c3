"""What an evaluation gave, as files and in a line: scores, the table of clips, the field's log, a picture."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import hsta_kernels

from ..data.clips import DatasetIndex
from ..files import write_text
from ..generated.mark import NO_EVIDENCE
from .metrics import Scores
from .plots import plot_confusion_matrix
from .tested_clips import Prediction, write_csv, write_megc_log

FILES = ("metrics.json", "predictions.csv", "megc2019.log", "confusion_matrix.png")


def write_report(
    directory: Path,
    scores: Scores,
    predictions: Sequence[Prediction],
    index: DatasetIndex,
    *,
    protocol: str,
    folds: int,
    shuffled_labels: bool,
    model: str,
    seed: int,
    device: torch.device,
) -> None:
    """Write `FILES` to ``directory``; metrics.json, the last, also tells what the figures were made with."""
    metrics, table, log, picture = (directory / name for name in FILES)
    subjects = len({clip.subject for clip in index.clips})
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


def summary(scores: Scores, index: DatasetIndex) -> str:
    """One line for people."""
    line = f"{index.name}, {len(scores.class_names)} classes: {_figures(scores)}"
    return line + (f"; {NO_EVIDENCE}" if index.generated else "")


def _figures(scores: Scores) -> str:
    """The scores beside what guessing gives."""
    chance = 1 / len(scores.class_names)
    return f"UF1 {scores.uf1:.3f}, UAR {scores.uar:.3f}, accuracy {scores.accuracy:.3f} (chance {chance:.3f})"

"""Folders as `hsta evaluate` leaves them, made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hsta.results.scoring import scores_of
from hsta.results.tested_clips import Prediction, write_csv

NAMES = ("negative", "positive", "surprise")


def certain(label: int | tuple[int, ...], count: int) -> tuple[float, ...]:
    """Probabilities of who is sure of a class, or of action units."""
    told = label if isinstance(label, tuple) else (label,)
    return tuple(0.9 if place in told else 0.05 for place in range(count))


def drawn_predictions(rng, subjects: int, right: float, dataset: str = "casme2") -> list[Prediction]:
    """Three to eight clips of each subject; a share of them is told ``right``."""
    return [
        Prediction(dataset, f"sub{number:02}", f"EP{clip}", truth, certain(truth if rng.random() < right else told, 3))
        for number in range(1, subjects + 1)
        for clip, (truth, told) in enumerate(rng.integers(0, 3, (rng.integers(3, 9), 2)).tolist())
    ]


def write_evaluation(folder: Path, predictions: Sequence[Prediction], names: Sequence[str] = NAMES, **more) -> Path:
    """metrics.json and predictions.csv, no more; ``more`` goes into metrics.json."""
    metrics = {**scores_of(predictions, names).to_dict(), "protocol": "loso", "folds": 4, "dataset": "casme2"}
    write_csv(folder / "predictions.csv", predictions, names)
    (folder / "metrics.json").write_text(json.dumps(metrics | more))
    return folder

"""The folder that `hsta evaluate` left, read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .learning_curves import Curve, read_curves

if TYPE_CHECKING:
    from .bootstrap import Subjects
    from .tested_clips import Prediction

METRICS = "metrics.json"


@dataclass(frozen=True)
class Evaluated:
    """``metrics`` are those of metrics.json, ``arguments`` of config.json, None where there is none."""

    folder: Path
    metrics: dict
    arguments: dict | None

    @classmethod
    def read(cls, folder: Path) -> Evaluated:
        """Raises `UserError` where no evaluation of one seed is done."""
        metrics = read_metrics(folder)
        if seeds := metrics.get("seeds"):
            raise UserError(f"{folder} holds evaluations of several seeds: name one, such as {folder}/seeds/{seeds[0]}")
        names = metrics.get("class_names")
        if not isinstance(names, list) or not {"confusion_matrix", "per_unit"} & metrics.keys():
            raise UserError(f"{folder / METRICS} is not of hsta evaluate")
        # Of several seeds the arguments lie in the folder of them all.
        config = [at / "config.json" for at in (folder, folder.absolute().parent.parent)]
        configs = config if folder.absolute().parent.name == "seeds" else config[:1]
        arguments = next((_read(path) for path in configs if path.is_file()), None)
        return cls(folder, metrics, arguments)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.metrics["class_names"])

    @property
    def action_units(self) -> bool:
        return "per_unit" in self.metrics

    def predictions(self) -> list[Prediction]:
        """Raises `UserError` where predictions.csv is missing, empty or damaged."""
        from .tested_clips import read_csv

        path = self.folder / "predictions.csv"
        if not path.is_file():
            raise UserError(f"no predictions.csv in {self.folder}")
        predictions = read_csv(path, self.class_names, self.action_units)
        if not predictions:
            raise UserError(f"{path} holds no clip")
        return predictions

    def subjects(self) -> Subjects:
        """What was told of each person. Raises `UserError` where metrics.json has other counts than predictions.csv."""
        from .bootstrap import Subjects

        subjects = Subjects.of(self.predictions(), self.class_names, self.action_units)
        counted = subjects.scores.to_dict()
        if _counts(counted) != _counts(self.metrics):
            raise UserError(f"metrics.json and predictions.csv in {self.folder} are not of one evaluation")
        return subjects

    def curves(self) -> dict[str, Curve]:
        """The learning curves by fold; none where none were kept."""
        return read_curves(self.folder)


def read_metrics(folder: Path) -> dict:
    """metrics.json of one seed or of several. Raises `UserError` where there is none yet, or no JSON object."""
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    path = folder / METRICS
    if not path.is_file():
        raise UserError(f"no {METRICS} in {folder}: hsta evaluate writes it when all folds are done")
    return _read(path)


def _counts(values: dict) -> list:
    if "per_unit" not in values:
        return values["confusion_matrix"]
    return [[unit[key] for key in ("support", "predicted", "true_positives")] for unit in values["per_unit"].values()]


def _read(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values

"""Weights to begin with: of a run, of a folder that ``save_pretrained`` wrote, or of the authors' code."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

import hsta_kernels

from ..errors import UserError
from .checkpoint_folder import TASK_FILE
from .checkpoints import load_checkpoint

# What weights do not depend on; the position tables are stretched where frames or sides are others.
ADAPTED = ("image_size", "num_frames", "num_classes", "position_size")


@dataclass(frozen=True)
class Start:
    """``weights`` by name; ``classes`` and ``people`` are None where nothing tells whom and what they learned from."""

    path: Path
    config: hsta_kernels.HSTAConfig
    weights: dict[str, Tensor]
    classes: tuple[str, ...] | None = None
    people: tuple[str, ...] | None = None

    @classmethod
    def read(cls, path: Path) -> Start:
        """Raises `UserError` when there are no weights, or damaged ones."""
        folder = path / "checkpoint" if (path / "checkpoint").is_dir() else path
        if (folder / TASK_FILE).is_file():
            model, task = load_checkpoint(folder)
            return cls(path, model.config, model.state_dict(), task.class_names, task.people)
        try:
            read = hsta_kernels.HSTA.from_pretrained if folder.is_dir() else hsta_kernels.HSTA.from_official
            model = read(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot start from {path}: {error}") from error
        return cls(path, model.config, model.state_dict())

    def fit_to(
        self, config: hsta_kernels.HSTAConfig, class_names: tuple[str, ...]
    ) -> tuple[hsta_kernels.HSTAConfig, Start]:
        """The configuration with positions as the weights know them, and the weights that it takes.

        A classifier of other classes is left out. Raises `UserError` when the weights are of another model.
        """
        for name, value in self.config.to_dict().items():
            if name not in ADAPTED and not name.endswith("_rate") and value != getattr(config, name):
                raise UserError(f"{self.path} is of a model of {name} {value}, not {getattr(config, name)}")
        moments, known_moments = (c.num_frames // c.tubelet_size for c in (config, self.config))
        if config.attention == "divided" and (moments == 1) != (known_moments == 1):
            raise UserError(
                f"{self.path} is of num_frames {self.config.num_frames}, not {config.num_frames}: "
                "only one of these has layers that attend over time"
            )
        if config.grids != self.config.grids or self.config.position_size:
            known = self.config.position_size or (self.config.num_frames, self.config.image_size)
            config = replace(config, position_size=known)
        known_classes = self.classes or class_names if self.config.num_classes == config.num_classes else None
        if known_classes == class_names:
            return config, self
        return config, replace(self, weights={n: w for n, w in self.weights.items() if not n.startswith("head.")})

    def notes(self) -> list[str]:
        """What somebody who begins with these weights should know."""
        said = []
        if "head.weight" not in self.weights:
            said.append(f"{self.path} is of other classes: the classifier is drawn anew")
        elif self.classes is None:
            said.append(f"nothing tells the classes of {self.path}: its classifier is taken for one of these")
        if self.people is None:
            said.append(f"nothing tells whom {self.path} was trained on: if on people tested here, the score is void")
        return said

    def refuse(self, tested: Collection[str]) -> None:
        """Raises `UserError` when the weights were trained on people who are tested."""
        if shared := sorted(set(tested) & set(self.people or ())):
            more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
            raise UserError(f"{self.path} was trained on people who are tested: {', '.join(shared[:3])}{more}")

"""Where the models of an evaluation looked in some of the clips that they were tested on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .tested_clips import Prediction

if TYPE_CHECKING:
    import numpy as np

ATTENTION = "attention"  # folder of a run, a file for each fold


@dataclass(frozen=True)
class Attention:
    """CLS attention of the video branch, float32 (T', height, width) of its grid, mean over heads."""

    weights: np.ndarray
    moments: tuple[tuple[int, ...], ...]
    """The frames of each of the T' moments, counted from the clip's onset."""
    apex: int | None
    """The frame that annotators named, if any."""
    patch: float
    """Side of a patch as a share of the frame's side."""

    @property
    def over_time(self) -> list[float]:
        """What each moment gets."""
        return self.weights.sum(axis=(1, 2)).tolist()


@dataclass(frozen=True)
class Example:
    """A tested clip that was chosen for the class ``label`` that it was told to show (see `examples`).

    ``faces`` are those of its moments, uint8 (T', S, S, 3), None where they are not shown.
    """

    prediction: Prediction
    label: int
    attention: Attention
    faces: np.ndarray | None = None


def read_attention(folder: Path) -> dict[Prediction, Attention]:
    """What the folds of a run kept, none where they kept none. Raises `UserError` for a damaged file."""
    found: dict[Prediction, Attention] = {}
    files = sorted((folder / ATTENTION).glob("*.safetensors"))
    if not files:
        return found
    from hsta_kernels import tensor_files

    values: dict[str, Any]
    for path in files:
        try:
            tensors, metadata = tensor_files.load(path)
            patch = float(metadata["patch"])
            for told, weights in zip(json.loads(metadata["clips"]), tensors["video"].numpy(), strict=True):
                moments, apex = tuple(map(tuple, told.pop("moments"))), told.pop("apex")
                values = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
                found[Prediction(**values)] = Attention(weights, moments, apex, patch)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error}") from error
    return found

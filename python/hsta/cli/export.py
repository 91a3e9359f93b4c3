"""``hsta export``: a trained model as a file for ONNX Runtime or OpenVINO."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import UserError
from ..training.checkpoint_folder import checkpoint_folder


@dataclass
class Export:
    """Write a trained model as ONNX or as OpenVINO's IR, which run without PyTorch, and try what was written."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Folder that `hsta train` wrote, with the model to export."""
    output: Path
    """File to write: its ending .onnx makes it ONNX, .xml OpenVINO's IR, with the weights beside it as .bin."""
    overwrite: bool = False
    """Replace the file if it is there."""

    def run(self) -> None:
        self._check()

        import hsta_kernels

        from ..data.transforms import DEVIATION, MEAN
        from ..training.checkpoints import load_checkpoint

        model, task = load_checkpoint(self.checkpoint)
        meant = {
            **asdict(task),
            "image_size": model.config.image_size,
            "num_frames": model.config.num_frames,
            "activation": "sigmoid" if task.action_units else "softmax",
            "mean": MEAN.tolist(),
            "deviation": DEVIATION.tolist(),
        }
        try:
            hsta_kernels.export.save(
                model, self.output, {name: json.dumps(value, ensure_ascii=False) for name, value in meant.items()}
            )
        except (ValueError, RuntimeError) as error:
            raise UserError(f"cannot export {self.checkpoint}: {error}") from error
        print(f"{self.output}: {', '.join(task.class_names)}")

    def _check(self) -> None:
        """Complaints come before libraries are loaded."""
        if self.output.suffix not in (".onnx", ".xml"):
            raise UserError(f"output must end in .onnx or, for OpenVINO, in .xml, got {self.output}")
        written = [self.output] if self.output.suffix == ".onnx" else [self.output, self.output.with_suffix(".bin")]
        for path in written:
            if path.is_dir():
                raise UserError(f"{path} is a folder; the model needs a file")
            if path.exists() and not self.overwrite:
                raise UserError(f"{path} exists: --overwrite replaces it")
        checkpoint_folder(self.checkpoint)

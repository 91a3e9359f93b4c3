"""``hsta prepare``: faces found, aligned and cropped once, for training to read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import UserError
from .options import OptionalInt, SourceOptions


@dataclass(frozen=True)
class Prepare:
    """Find, align and crop the face of every clip of a data set, once; train, evaluate and check read what it leaves.

    A clip is moved as a whole, so that only the face moves in it. Of several faces in a picture the largest that stays
    is taken; clips without one are named and left out, and the exit code is 1. Stopped at any moment, the same command
    goes on.
    """

    data: SourceOptions
    output: Path
    """Folder of what is prepared; it takes as many bytes as there are frames, times their pixels, times 3."""
    image_size: int = 224
    """Side of the frames in pixels."""
    detector: Literal["mtcnn", "cascade"] = "mtcnn"
    """What finds faces: mtcnn finds eyes, nose and mouth and turns faces upright (hsta-kernels[prepare] installs it);
    cascade is OpenCV's, finds upright faces that look into the camera and turns none."""
    workers: OptionalInt = None
    """Number of processes that work, one for each processor if left out; with 0 the command does it all itself."""
    overwrite: bool = False
    """Delete what the folder holds prepared and begin again."""

    def run(self) -> int:
        if self.image_size < 32:
            raise UserError(f"image_size must be 32 or more, got {self.image_size}")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers must be 0 or more, got {self.workers}")

        from ..data.registry import named_dataset

        dataset, source = named_dataset(self.data.dataset), self.data.data
        if not source.is_dir():
            raise UserError(f"no such folder: {source}")

        from ..data.preparation import prepare_dataset

        index = prepare_dataset(
            dataset,
            source,
            self.output,
            size=self.image_size,
            detector=self.detector,
            workers=os.cpu_count() or 1 if self.workers is None else self.workers,
            overwrite=self.overwrite,
        )
        for said in index.told:
            print(f"note: {said}")
        lost = f", {index.lost} lost" if index.lost else ""
        print(f"{len(index.clips)} clips prepared{lost}: {self.output}")
        return int(index.lost > 0)

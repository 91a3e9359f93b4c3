"""``hsta predict``: the micro-expression in a video file or in a folder of frames."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ..files import write_text
from ..generated.mark import NO_EVIDENCE
from .options import OptionalInt

if TYPE_CHECKING:
    import numpy as np

    from ..results.recognition import Recognition


@dataclass
class Predict:
    """Tell the micro-expression in a video, and show where the model looked."""

    path: Annotated[Path, tyro.conf.Positional]
    """Video file or folder of frames to look at."""
    checkpoint: Path
    """Folder that `hsta train` wrote, with the model to use."""
    output: Path = Path("predictions")
    """Folder that gets the answer as a picture and as JSON."""
    json: bool = False
    """Print the answer as JSON and nothing else."""
    onset: OptionalInt = None
    """Number of the first frame of the expression, counted from 0; found if left out."""
    apex: OptionalInt = None
    """Number of the frame in which the expression is strongest; found if left out."""
    offset: OptionalInt = None
    """Number of the last frame of the expression; found if left out."""

    def run(self) -> Recognition:
        from ..data.video import read_frames
        from ..face.crop import locate_face
        from ..results.recognition import recognize
        from ..training.checkpoints import load_checkpoint

        model, task = load_checkpoint(self.checkpoint)
        frames, fps = read_frames(self.path)
        box, found = locate_face(frames)
        if not found:
            print(f"hsta: no face found in {self.path}, the centre is taken", file=sys.stderr)
        result, apex = recognize(
            model,
            task,
            frames,
            file=str(self.path),
            fps=fps,
            face=box,
            face_found=found,
            events=(self.onset, self.apex, self.offset),
        )
        if self.json:
            print(json.dumps(asdict(result)), flush=True)
        else:
            self._print(result)
        special, video = (size / model.config.image_size for size in model.config.patch_size)
        saved = self._save(result, apex, {"video": video, "special": special})
        if not self.json:
            print(f"picture: {saved}")
        return result

    def _save(self, result: Recognition, apex: np.ndarray, patch_shares: dict[str, float]) -> Path:
        from ..results.plots import plot_prediction

        # A folder's name may hold dots; a file's ending is not part of its name.
        name = self.path.resolve().name if self.path.is_dir() else self.path.stem
        picture = self.output / f"{name}.png"
        write_text(self.output / f"{name}.json", json.dumps(asdict(result), indent=2) + "\n")
        plot_prediction(picture, result, apex, patch_shares)
        return picture

    @staticmethod
    def _print(result: Recognition) -> None:
        print(f"{result.file}: {result.label}")
        for name, probability in sorted(result.probabilities.items(), key=lambda item: -item[1]):
            print(f"  {name:<12} {probability:.3f}")
        how = "spotted" if result.spotted else "given"
        print(f"  onset {result.onset}, apex {result.apex}, offset {result.offset} ({how})")
        if result.generated:
            print(f"  learned from {NO_EVIDENCE}")

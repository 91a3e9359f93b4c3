"""``hsta predict``: the micro-expression in a video file or in a folder of frames."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from ..errors import UserError
from ..files import write_text
from ..generated.mark import NO_EVIDENCE
from .options import OptionalInt

if TYPE_CHECKING:
    import hsta_kernels

    from ..training.checkpoints import Task

MEASURED = 224  # side of the face crops in which motion is looked for


@dataclass(frozen=True)
class Result:
    """What was found in a video. Frames are counted from 0."""

    file: str
    label: str
    probabilities: dict[str, float]
    onset: int
    apex: int
    offset: int
    spotted: bool
    """Onset and offset were found by the program, not given."""
    fps: float | None
    face: tuple[int, int, int, int]
    """x, y, width and height of the crop."""
    face_found: bool
    motion_curve: list[float]
    """For each frame, motion from the onset in pixels of a 224 frame."""
    attention: dict[str, list[list[float]]]
    """Of the branches special and video: CLS attention to the patches, mean over heads and time."""
    generated: bool
    """The model learned from generated data."""


@dataclass
class Predict:
    """Tell the micro-expression in a video, and show where the model looked."""

    path: Annotated[Path, tyro.conf.Positional]
    """Video file, or folder of frames."""
    checkpoint: Path
    """Folder that `hsta train` wrote."""
    output: Path = Path("predictions")
    """Folder for the picture and the same as JSON."""
    json: bool = False
    """Print JSON and nothing else."""
    onset: OptionalInt = None
    """First frame of the expression, counted from 0; found if not given."""
    apex: OptionalInt = None
    """Frame of the strongest expression; found if not given."""
    offset: OptionalInt = None
    """Last frame of the expression; found if not given."""

    def run(self) -> Result:
        # These load torch, which --help has no use for.
        from ..data.video import read_frames
        from ..training.checkpoints import load_checkpoint

        model, task = load_checkpoint(self.checkpoint)
        frames, fps = read_frames(self.path)
        box, found = locate_face(frames)
        if not found:
            print(f"hsta: no face found in {self.path}, the centre is taken", file=sys.stderr)
        result, apex = recognize(model, task, frames, fps, box, (self.onset, self.apex, self.offset))
        result = Result(file=str(self.path), face=box, face_found=found, generated=task.generated, **result)
        if self.json:
            print(json.dumps(asdict(result)), flush=True)
        else:
            self._print(result)
        saved = self._save(result, apex, [size / model.config.image_size for size in model.config.patch_size])
        if not self.json:
            print(f"picture: {saved}")
        return result

    def _save(self, result: Result, apex: np.ndarray, patch_shares: list[float]) -> Path:
        from ..results.plots import plot_prediction

        # A folder's name may hold dots; a file's ending is not part of its name.
        name = self.path.resolve().name if self.path.is_dir() else self.path.stem
        picture = self.output / f"{name}.png"
        write_text(self.output / f"{name}.json", json.dumps(asdict(result), indent=2) + "\n")
        plot_prediction(picture, result, apex, patch_shares)
        return picture

    @staticmethod
    def _print(result: Result) -> None:
        print(f"{result.file}: {result.label}")
        for name, probability in sorted(result.probabilities.items(), key=lambda item: -item[1]):
            print(f"  {name:<12} {probability:.3f}")
        how = "spotted" if result.spotted else "given"
        print(f"  onset {result.onset}, apex {result.apex}, offset {result.offset} ({how})")
        if result.generated:
            print(f"  learned from {NO_EVIDENCE}")


def locate_face(frames: Sequence[np.ndarray]) -> tuple[tuple[int, int, int, int], bool]:
    """The square to crop, and whether there is a face in it: sought in the first, middle and last frame."""
    from ..face.crop import centre_box, find_face

    for i in dict.fromkeys((0, len(frames) // 2, len(frames) - 1)):
        if box := find_face(frames[i]):
            return box, True
    return centre_box(frames[0]), False


def recognize(
    model: hsta_kernels.HSTA,
    task: Task,
    frames: Sequence[np.ndarray],
    fps: float | None,
    box: tuple[int, int, int, int],
    given: tuple[int | None, int | None, int | None] = (None, None, None),
) -> tuple[dict, np.ndarray]:
    """The fields of `Result` that follow from the frames, and the face in the apex frame.

    ``given`` are onset, apex and offset or None. Raises `UserError` when they are not in the video or not in
    order.
    """
    import torch

    import hsta_kernels

    from ..data.inputs import make_inputs
    from ..face.crop import crop_face
    from ..face.spotting import motion_curve

    config = model.config
    crops = crop_face(frames, box, MEASURED)
    onset, apex, offset = _events(crops, fps, *given)
    clip = crop_face(frames[onset : offset + 1], box, max(MEASURED, config.image_size))
    inputs = make_inputs(
        clip,
        apex - onset,
        image_size=config.image_size,
        num_frames=config.num_frames,
        special=task.special,
    )
    video, special = (tensor[None] for tensor in inputs)
    with torch.no_grad():
        probabilities = model(video, special)[0].double().softmax(0).tolist()
    maps = hsta_kernels.cls_attention(model, video, special)
    attention = {
        branch: weights[0].mean(dim=(0, 1)).tolist() for branch, weights in zip(("special", "video"), maps, strict=True)
    }
    label = max(zip(probabilities, task.class_names, strict=True))[1]
    return {
        "label": label,
        "probabilities": dict(zip(task.class_names, probabilities, strict=True)),
        "onset": onset,
        "apex": apex,
        "offset": offset,
        "spotted": given[0] is None,
        "fps": fps,
        "motion_curve": motion_curve(crops, onset).tolist(),
        "attention": attention,
    }, clip[apex - onset]


def _events(
    crops: Sequence[np.ndarray], fps: float | None, onset: int | None, apex: int | None, offset: int | None
) -> tuple[int, int, int]:
    from ..face.spotting import motion_curve, spot

    if onset is None and apex is None and offset is None:
        spotted = spot(crops, fps) if fps else spot(crops)
        return spotted.onset, spotted.apex, spotted.offset
    if onset is None or offset is None:
        raise UserError("onset and offset must be given together (apex may be left out)")
    if not 0 <= onset <= offset < len(crops):
        raise UserError(f"onset and offset must be in order and in 0 to {len(crops) - 1}, got {onset} and {offset}")
    if apex is None:
        apex = onset + int(np.argmax(motion_curve(crops[onset : offset + 1])))
    elif not onset <= apex <= offset:
        raise UserError(f"apex must be from onset {onset} to offset {offset}, got {apex}")
    return onset, apex, offset

"""The micro-expression in a video: when it is, what it is, and where the model looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

import hsta_kernels

from ..data.inputs import make_inputs
from ..errors import UserError
from ..face.crop import crop_face
from ..face.spotting import Events, Motion, spot
from ..training.checkpoints import Task

MEASURED = 224  # side of the face crops in which motion is looked for


@dataclass(frozen=True)
class Recognition:
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
    """Of the branches video and special: CLS attention to the patches, mean over heads and time."""
    generated: bool
    """The model learned from generated data."""


def recognize(
    model: hsta_kernels.HSTA,
    task: Task,
    frames: Sequence[np.ndarray],
    *,
    file: str,
    fps: float | None,
    face: tuple[int, int, int, int],
    face_found: bool,
    events: tuple[int | None, int | None, int | None] = (None, None, None),
) -> tuple[Recognition, np.ndarray]:
    """What a model says of the ``face`` (a box) in ``frames``, uint8 (H, W, 3) RGB, and its crop of the apex frame.

    ``events`` are onset, apex and offset, or None for what is to be found. Raises `UserError` when they are not
    in the video or not in order.
    """
    config = model.config
    crops = crop_face(frames, face, MEASURED)
    motion = Motion(crops)
    onset, apex, offset = _events(motion, fps, *events)
    clip = crops[onset : offset + 1]
    if config.image_size > MEASURED:  # larger crops show it more
        clip = crop_face(frames[onset : offset + 1], face, config.image_size)
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
    recognition = Recognition(
        file=file,
        label=max(zip(probabilities, task.class_names, strict=True))[1],
        probabilities=dict(zip(task.class_names, probabilities, strict=True)),
        onset=onset,
        apex=apex,
        offset=offset,
        spotted=events[0] is None,
        fps=fps,
        face=face,
        face_found=face_found,
        motion_curve=motion.since(onset).tolist(),
        attention={branch: weights[0].mean(dim=(0, 1)).tolist() for branch, weights in maps.items()},
        generated=task.generated,
    )
    return recognition, clip[apex - onset]


def _events(motion: Motion, fps: float | None, onset: int | None, apex: int | None, offset: int | None) -> Events:
    if onset is None and apex is None and offset is None:
        return spot(motion, fps) if fps else spot(motion)
    if onset is None or offset is None:
        raise UserError("onset and offset must be given together (apex may be left out)")
    if not 0 <= onset <= offset < len(motion):
        raise UserError(f"onset and offset must be in order and in 0 to {len(motion) - 1}, got {onset} and {offset}")
    if apex is None:
        apex = onset + int(np.argmax(motion.since(onset)[onset : offset + 1]))
    elif not onset <= apex <= offset:
        raise UserError(f"apex must be from onset {onset} to offset {offset}, got {apex}")
    return Events(onset, apex, offset)

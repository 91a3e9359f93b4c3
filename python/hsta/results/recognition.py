"""The micro-expression in a video: when it is, what it is, and where the model looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

import hsta_kernels

from ..data.film import Film, hold
from ..data.inputs import make_inputs
from ..data.sampling import choose_frames, even_in_time
from ..errors import UserError
from ..face.framing import Finder, Square, finder
from ..face.spotting import Events, Motion, spot
from ..training.checkpoints import Task
from .answer import probabilities_of, said

MEASURED = 224  # side of the face crops in which motion is looked for


@dataclass(frozen=True)
class Recognition:
    """What was found in a video. Frames are counted from 0."""

    file: str
    label: str
    """The most probable class, or the action units that are more probable than not, as ``AU1+AU2``."""
    probabilities: dict[str, float]
    """Of each class, or of each action unit for itself."""
    onset: int
    apex: int
    offset: int
    spotted: bool
    """Onset and offset were found by the program, not given."""
    times: list[float]
    """Of each frame, seconds from the first."""
    face: tuple[int, int, int, int]
    """x, y, width and height of the crop."""
    face_turned: float
    """Degrees by which the crop was turned back about its middle, since the head leant to the right in the picture."""
    face_found: bool
    motion_curve: list[float]
    """For each frame, motion from the onset in pixels of a 224 frame."""
    attention: dict[str, list[list[float]]]
    """Of the branches video and special: CLS attention to the patches, mean over heads and time."""
    moments: list[list[int]]
    """The frames that the video branch saw, those of one moment together."""
    attention_over_time: list[float]
    """CLS attention of the video branch to each moment, mean over heads."""
    generated: bool
    """The model learned from generated data."""
    action_units: bool
    """The model tells action units."""
    notes: list[str]
    """What was not as it should be in the film, and what was done about it."""


def recognize(
    model: hsta_kernels.HSTA,
    task: Task,
    film: Film,
    *,
    file: str,
    events: tuple[int | None, int | None, int | None] = (None, None, None),
    detector: str | None = None,
) -> tuple[Recognition, np.ndarray]:
    """What a model says of the micro-expression in a ``film``, and the face in its apex frame, uint8 (H, W, 3).

    ``events`` are onset, apex and offset, or None for what is to be found. The face is cut out as by `how_to_find`.
    Raises `UserError` when they are not in the video or not in order.
    """
    find, size = how_to_find(model, task, detector)
    frames, times = hold(film, file)
    found = find(frames)
    framing = found or Square.in_the_middle(frames)
    crops = framing.crop(frames, MEASURED)
    motion = Motion(crops)
    onset, apex, offset = _events(motion, times, *events)
    clip = crops[onset : offset + 1]
    if task.prepared or detector:  # the face of this clip alone, as in training
        framing = find(frames[onset : offset + 1]) or framing
        clip = framing.crop(frames[onset : offset + 1], size)
    elif size > MEASURED:  # larger crops show it more
        clip = framing.crop(frames[onset : offset + 1], size)
    told = classify(model, task, clip, times[onset : offset + 1], apex - onset)
    recognition = Recognition(
        file=file,
        label=said(told.probabilities, task.action_units),
        probabilities=told.probabilities,
        onset=onset,
        apex=apex,
        offset=offset,
        spotted=events[0] is None,
        times=times.tolist(),
        face=framing.box,
        face_turned=framing.turned,
        face_found=found is not None,
        motion_curve=motion.since(onset).tolist(),
        attention=told.attention,
        moments=[[onset + frame for frame in moment] for moment in told.moments],
        attention_over_time=told.attention_over_time,
        generated=task.generated,
        action_units=task.action_units,
        notes=film.notes + ([] if found else ["no face found, the centre is taken"]),
    )
    return recognition, clip[apex - onset]


def how_to_find(model: hsta_kernels.HSTA, task: Task, detector: str | None) -> tuple[Finder, int]:
    """What finds faces as in the clips that the model learned from, and the side of the frames that they are put into.

    A ``detector`` (of `hsta.face.detectors`) takes the place of theirs. Where they were not prepared, the square around
    a face is taken that OpenCV's cascade finds. Raises `UserError` where the detector is not installed.
    """
    prepared = task.prepared
    size = prepared.size if prepared else max(MEASURED, model.config.image_size)
    return finder(detector or (prepared.detector if prepared else None)), size


class Told(NamedTuple):
    """What the model tells of one micro-expression, as in `Recognition`; frames are counted from its onset."""

    probabilities: dict[str, float]
    attention: dict[str, list[list[float]]]
    moments: list[list[int]]
    attention_over_time: list[float]


def classify(model: hsta_kernels.HSTA, task: Task, clip: Sequence[np.ndarray], times: np.ndarray, apex: int) -> Told:
    """What the model tells of the face crops of one micro-expression.

    ``clip`` is onset to offset, RGB uint8, taken at ``times`` (seconds); ``apex`` indexes it.
    """
    even = even_in_time(times)
    place = int(np.abs(times[even] - times[apex]).argmin())
    even[place] = apex
    config = model.config
    inputs = make_inputs(
        [clip[t] for t in even],
        place,
        image_size=config.image_size,
        num_frames=config.num_frames,
        special=task.special,
    )
    logits: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda module, arguments, output: logits.append(output))
    try:  # the call that looks at attention gives the logits too
        maps = hsta_kernels.cls_attention(model, *(tensor[None] for tensor in inputs))
    finally:
        hook.remove()
    probabilities = probabilities_of(logits[0][0], task.action_units).tolist()
    attention = {branch: weights[0].mean(dim=(0, 1)).tolist() for branch, weights in maps.items()}
    seen = even[choose_frames(len(even), config.num_frames)].reshape(-1, config.tubelet_size)
    over_time = maps["video"][0].mean(dim=0).sum(dim=(-2, -1))
    return Told(dict(zip(task.class_names, probabilities, strict=True)), attention, seen.tolist(), over_time.tolist())


def _events(motion: Motion, times: np.ndarray, onset: int | None, apex: int | None, offset: int | None) -> Events:
    if onset is None or offset is None:
        return spot(motion, times.tolist())
    if not 0 <= onset <= offset < len(motion):
        raise UserError(f"onset and offset must be in order and in 0 to {len(motion) - 1}, got {onset} and {offset}")
    if apex is None:
        apex = onset + int(np.argmax(motion.since(onset)[onset : offset + 1]))
    return Events(onset, apex, offset)

"""Films a portrait: a micro-expression on top of head drift, blinks, flicker and sensor noise."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .action_units import displacement, units_text
from .emotions import EMOTION_UNITS
from .faces import SIDE, Portrait, parametric_portrait
from .landmarks import FRAME, Landmarks
from .photograph import photographed_portrait

AMPLITUDE = (0.5, 3.0)  # of the strongest movement, pixels at 224
DURATION = (0.12, 0.5)  # onset to offset, seconds


@dataclass(frozen=True)
class GeneratedClip:
    """``frames`` uint8 (size, size, 3) RGB with some neutral ones around; ``onset``, ``apex``, ``offset``
    index them.

    ``amplitude`` is the strongest unit's pull in pixels at 224; ``action_units`` is written as annotators do
    (``4+9``).
    """

    frames: list[np.ndarray]
    onset: int
    apex: int
    offset: int
    emotion: str
    action_units: str
    amplitude: float


def subject_portrait(seed: int, subject: int) -> Portrait:
    """Who subject number ``subject`` (from 1) of the data set ``seed`` is; number 1 is the photograph."""
    if subject == 1:
        return photographed_portrait()
    return parametric_portrait(np.random.default_rng([seed, subject]))


def generate_clip(
    portrait: Portrait,
    emotion: str,
    rng: np.random.Generator,
    *,
    image_size: int = 224,
    fps: float = 30.0,
    amplitude: float = 1.0,
    margin: float = 0.2,
) -> GeneratedClip:
    """Film ``portrait`` showing ``emotion`` for 0.12 to 0.5 s, with about ``margin`` seconds of neutral face
    around.

    ``amplitude`` multiplies the movement (0.5 to 3 px at 224) and nothing else: with 0 the clip is the same
    but for it. Raises ValueError for an unknown emotion.
    """
    if emotion not in EMOTION_UNITS:
        raise ValueError(f"emotion must be one of {', '.join(EMOTION_UNITS)}, got {emotion!r}")
    length = max(4, round(rng.uniform(*DURATION) * fps))
    rise = int(np.clip(round(rng.uniform(0.3, 0.45) * length), 2, length - 2))
    before, after = (max(2, round(rng.uniform(0.7, 1.6) * margin * fps)) for _ in range(2))
    onset, apex, offset = before, before + rise, before + length
    count = offset + after + 1

    choices = EMOTION_UNITS[emotion]
    units = choices[rng.integers(len(choices))]
    side = ("", "L", "R")[rng.integers(3)] if units == (14,) else ""
    # The left of the face is on the right of the picture.
    sides = {"": ("left", "right"), "L": ("right",), "R": ("left",)}[side]
    strongest = rng.uniform(*AMPLITUDE)
    strengths = {unit: amplitude * strongest * rng.uniform(0.75, 1.0) for unit in units}

    pose = _pose(rng)
    landmarks = _posed(portrait.landmarks, pose)
    muscles = displacement(strengths, landmarks, image_size, sides)
    envelope = _envelope(np.arange(count), onset, apex, offset)
    closure = _blinks(rng, count, fps)
    drift = _drift(rng, count, fps)
    flicker = 1 + 0.012 * _wander(rng, count, fps, 4.0)
    noise = rng.uniform(1.0, 2.2)

    frames = []
    for t in range(count):
        offsets = -float(envelope[t]) * muscles
        if closure[t] > 0:
            offsets += _lids(landmarks, float(closure[t]), image_size)
        still = _warp(portrait.texture, offsets, pose, drift[t], image_size)
        grain = rng.standard_normal(still.shape, np.float32) * noise
        frames.append(np.clip(still * flicker[t] + grain, 0, 255).round().astype(np.uint8))
    return GeneratedClip(
        frames, onset, apex, offset, emotion, units_text(units, side), round(float(amplitude * strongest), 3)
    )


def _envelope(t: np.ndarray, onset: int, apex: int, offset: int) -> np.ndarray:
    """0 up to the onset, 1 at the apex, 0 from the offset on, with no corners."""
    phase = np.interp(t, [onset, apex, offset], [0, 1, 0])
    return 0.5 - 0.5 * np.cos(np.pi * phase)


def _wander(rng: np.random.Generator, count: int, fps: float, frequency: float) -> np.ndarray:
    """A slow random curve of about unit size: three sines around ``frequency`` hertz."""
    t = np.arange(count)[:, None] / fps
    hertz = rng.uniform(0.4, 1.3, 3) * frequency
    phase = rng.uniform(0, 2 * np.pi, 3)
    return (np.sin(2 * np.pi * hertz * t + phase) * rng.uniform(0.3, 0.8, 3)).sum(axis=1)


def _pose(rng: np.random.Generator) -> np.ndarray:
    """How the face stands in this clip's picture: (2, 3) matrix, canonical pixels to canonical pixels."""
    turned = cv2.getRotationMatrix2D((FRAME / 2, FRAME / 2), rng.uniform(-3, 3), rng.uniform(0.96, 1.04))
    matrix = np.asarray(turned, np.float64)
    matrix[:, 2] += rng.uniform(-4, 4, 2)
    return matrix


def _posed(landmarks: Landmarks, pose: np.ndarray) -> Landmarks:
    return {name: tuple(pose @ (x, y, 1.0)) for name, (x, y) in landmarks.items()}


def _drift(rng: np.random.Generator, count: int, fps: float) -> np.ndarray:
    """The head's way through the clip: (count, 3), x and y in canonical pixels and turn in radians."""
    return np.stack([scale * _wander(rng, count, fps, 0.6) for scale in (1.2, 1.0, 0.005)], axis=1)


def _blinks(rng: np.random.Generator, count: int, fps: float) -> np.ndarray:
    """How far the lids are closed, 0 to 1: a blink in every third clip or so, wherever it happens to fall."""
    if rng.uniform() > 0.3:
        return np.zeros(count)
    middle, half = rng.uniform(0, count), rng.uniform(0.08, 0.13) * fps
    phase = np.clip(np.abs(np.arange(count) - middle) / half, 0, 1)
    return 0.5 + 0.5 * np.cos(np.pi * phase)


def _lids(landmarks: Landmarks, closure: float, size: int) -> np.ndarray:
    """Sampling offsets (size, size, 2) that draw the upper lids down over the eyes."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (FRAME / size)
    x, y = np.meshgrid(axis, axis)
    offsets = np.zeros((size, size, 2), np.float32)
    for side in ("left", "right"):
        ex, ey = landmarks[f"eye_{side}"]
        width = 1.15 * abs(landmarks[f"eye_corner_{side}"][0] - ex)
        opening = np.clip(1 - ((x - ex) / width) ** 2, 0, 1)
        upper = ey + (landmarks[f"lid_upper_{side}"][1] - ey) * opening - 1.0
        lower = ey + (landmarks[f"lid_lower_{side}"][1] - ey) * opening + 0.5
        top = landmarks[f"brow_middle_{side}"][1] + 5
        closed = upper + closure * (lower - upper)
        # Skin between brow and lid stretches down to the closed edge; the eye is squeezed below it.
        stretched = top + (y - top) * (upper - top) / (closed - top)
        squeezed = lower - (lower - y) * (lower - upper) / np.maximum(lower - closed, 1e-3)
        source = np.where(y < closed, stretched, squeezed)
        within = (y > top) & (y < lower) & (np.abs(x - ex) < width)
        offsets[..., 1] += np.where(within, source - y, 0) * (size / FRAME)
    return offsets


def _warp(texture: np.ndarray, offsets: np.ndarray, pose: np.ndarray, drift: np.ndarray, size: int) -> np.ndarray:
    """The portrait as the camera sees it, float32 (size, size, 3); one resampling, at twice the size."""
    double = 2 * size
    axis = (np.arange(double, dtype=np.float32) + 0.5) * (FRAME / double)
    x, y = np.meshgrid(axis, axis)
    fine = cv2.resize(offsets, (double, double), interpolation=cv2.INTER_LINEAR) * (FRAME / size)
    # The head drifts, the room behind it does not.
    head = np.clip(1.6 - np.hypot((x - 112) / 75, (y - 105) / 105), 0, 1)
    dx, dy, turn = drift.tolist()
    sx = x + fine[..., 0] - head * (dx - turn * (y - 112))
    sy = y + fine[..., 1] - head * (dy + turn * (x - 112))
    inverse = (cv2.invertAffineTransform(pose) * (SIDE / FRAME)).astype(np.float32)
    maps = [row[0] * sx + row[1] * sy + (row[2] - 0.5) for row in inverse]
    picture = cv2.remap(texture, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)

"""From RGB frames to what the model takes: geometry, augmentation, normalization, optical flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from ..face.flow import check_method, dense_flow

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, RGB
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


# What the special frames may be, and how flow among them is computed.
SPECIAL = {"frames": None, "apex-offset": None, "flow": "farneback", "flow-dis": "dis", "flow-tvl1": "tvl1"}


def check_special(special: str) -> None:
    """Raises ValueError for what special frames cannot be, `UserError` for flow that this OpenCV cannot compute."""
    if special not in SPECIAL:
        raise ValueError(f"special must be one of {', '.join(SPECIAL)}, got {special!r}")
    if method := SPECIAL[special]:
        check_method(method)


@dataclass(frozen=True)
class Augmentation:
    """One draw, applied alike to every frame of a clip: what moves between frames must stay the face.

    ``scale`` and ``x``, ``y`` place the crop (shares of the frame's side and of the room left); ``gain`` and
    ``bias`` change brightness (frames in [0, 1]).
    """

    flip: bool = False
    scale: float = 1.0
    x: float = 0.5
    y: float = 0.5
    gain: float = 1.0
    bias: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Augmentation:
        return cls(
            flip=bool(rng.uniform() < 0.5),
            scale=rng.uniform(0.9, 1.0),
            x=rng.uniform(),
            y=rng.uniform(),
            gain=rng.uniform(0.85, 1.15),
            bias=rng.uniform(-0.06, 0.06),
        )


def cut(frames: Sequence[np.ndarray], size: int, augmentation: Augmentation) -> np.ndarray:
    """Frames placed, resized and flipped: uint8 (N, size, size, 3); the middle square of oblong ones."""
    a = augmentation
    out = np.empty((len(frames), size, size, 3), np.uint8)
    for frame, picture in zip(frames, out, strict=True):
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"frames must be uint8 (H, W, 3), got {frame.dtype} {frame.shape}")
        height, width = frame.shape[:2]
        whole = min(height, width)
        side = round(a.scale * whole)
        top = (height - whole) // 2 + round(a.y * (whole - side))
        left = (width - whole) // 2 + round(a.x * (whole - side))
        crop = frame[top : top + side, left : left + side]
        interpolation = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
        cv2.resize(crop, (size, size), picture, interpolation=interpolation)
        if a.flip:
            cv2.flip(picture, 1, picture)
    return out


def brighten(frames: Tensor, light: Tensor) -> Tensor:
    """uint8 frames (B, ...) to float32 in [0, 1]; ``light`` float32 (B, 2) has each clip's gain and bias."""
    gain, bias = light.view(-1, 2, *[1] * (frames.ndim - 1)).unbind(1)
    return frames.float().div_(255).mul_(gain).add_(bias).clamp_(0, 1)


def normalize(frames: Tensor, light: Tensor) -> Tensor:
    """Frames uint8 (B, N, H, W, 3) with the ``light`` of each clip, less ImageNet's mean, by its deviation: float32
    (B, 3, N, H, W)."""
    mean, deviation = (torch.from_numpy(x).to(frames.device).view(3, 1, 1, 1) for x in (MEAN, DEVIATION))
    return brighten(frames.movedim(-1, 1).contiguous(), light).sub_(mean).div_(deviation)


def flow_image(before: np.ndarray, after: np.ndarray, method: str = "farneback") -> np.ndarray:
    """Motion between two frames in [0, 1], float32 (H, W, 3) of about unit size: u, v and optical strain.

    The flow is taken less its median, the head's own motion; u and v are in pixels of a 224 frame. Strain is
    the magnitude of the symmetric gradient (Shreve et al., 2011), times 10.
    """
    flow = dense_flow(_grey(before), _grey(after), method)
    flow -= np.median(flow, axis=(0, 1))
    uy, ux = np.gradient(flow[..., 0])
    vy, vx = np.gradient(flow[..., 1])
    strain = np.sqrt(ux**2 + vy**2 + 0.5 * (uy + vx) ** 2)
    scale = 224 / before.shape[0]
    return np.dstack([flow[..., 0] * scale, flow[..., 1] * scale, 10 * strain]).astype(np.float32)


def _grey(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.round(255 * frame).astype(np.uint8), cv2.COLOR_RGB2GRAY)

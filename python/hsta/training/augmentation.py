"""What changes a batch on its device: a few drawn changes of each clip, and clips mixed with each other.

Every draw comes from torch's CPU stream, so that it is the same on all devices.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.transforms import DEVIATION, MEAN

CHANGES = 2
"""Number of changes that a clip gets, each of another kind."""
# The most of each kind, at strength 1: radians; shares of the side; logarithm of the factor; of [0, 1]; factors less 1.
MOST = {
    "turn": math.radians(20),
    "right": 0.12,
    "down": 0.12,
    "size": math.log(1.2),
    "brightness": 0.3,
    "contrast": 0.5,
    "saturation": 0.8,
}


def draw_changes(clips: int, strength: float) -> dict[str, Tensor]:
    """How much of each kind a clip gets, float32 (clips,) by kind: 0 but for `CHANGES` of them, which are drawn.

    As in RandAugment (Cubuk et al., 2020), all have the same ``strength``, from 0 to 1; the sign is drawn.
    """
    kinds = len(MOST)
    chosen = torch.rand(clips, kinds).argsort(dim=1) < CHANGES
    signs = torch.randint(2, (clips, kinds)) * 2 - 1
    amounts = strength * signs * chosen * torch.tensor(list(MOST.values()))
    return dict(zip(MOST, amounts.T, strict=True))


def augment(video: Tensor, special: Tensor, changes: dict[str, Tensor], *, flow: bool) -> tuple[Tensor, Tensor]:
    """Video (B, 3, T, H, W) and special frames (B, 3, 2, H, W), normalized, with the ``changes`` of each clip.

    They are alike for all frames of a clip, so that what moves between them is still the face alone. Where the special
    frames are ``flow`` (u, v, strain), their vectors turn and grow with the picture, and colours are not theirs.
    """
    changes = {name: amount.to(video.device) for name, amount in changes.items()}
    video = _move(_colour(video, changes), changes)
    special = _move(special if flow else _colour(special, changes), changes)
    if flow:
        cos, sin, size = (x[:, None, None, None] for x in _turn(changes))
        u, v, strain = special.unbind(1)
        special = torch.stack([size * (cos * u - sin * v), size * (sin * u + cos * v), strain], dim=1)
    return video, special


def mix(video: Tensor, special: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each clip and its targets (B, C) mixed with another's of the batch (mixup, Zhang et al., 2018).

    The share that stays is drawn for the batch from Beta(alpha, alpha).
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    others = torch.randperm(len(video)).to(video.device)

    def mixed(tensor: Tensor) -> Tensor:
        return tensor.lerp(tensor[others], 1 - share)

    return mixed(video), mixed(special), mixed(targets)


def _turn(changes: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return changes["turn"].cos(), changes["turn"].sin(), changes["size"].exp()


def _move(frames: Tensor, changes: dict[str, Tensor]) -> Tensor:
    cos, sin, size = _turn(changes)
    # A pixel of the result is looked up where it came from; sides run from -1 to 1.
    x, y = -2 * changes["right"], -2 * changes["down"]
    back = torch.stack([cos, sin, cos * x + sin * y, -sin, cos, -sin * x + cos * y], dim=1) / size[:, None]
    flat = frames.flatten(1, 2)
    grid = F.affine_grid(back.view(-1, 2, 3), list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, padding_mode="border", align_corners=False).view_as(frames)


def _colour(frames: Tensor, changes: dict[str, Tensor]) -> Tensor:
    mean, deviation = (torch.tensor(x, device=frames.device).view(3, 1, 1, 1) for x in (MEAN, DEVIATION))
    brightness, contrast, saturation = (
        changes[name].view(-1, 1, 1, 1, 1) for name in ("brightness", "contrast", "saturation")
    )
    picture = frames * deviation + mean
    grey = picture.mean(dim=1, keepdim=True)
    picture = grey + (picture - grey) * (1 + saturation)
    picture = 0.5 + (picture - 0.5) * (1 + contrast) + brightness
    return (picture.clamp(0, 1) - mean) / deviation

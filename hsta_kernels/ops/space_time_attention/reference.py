"""Space-time attention in plain PyTorch: the backend that runs anywhere, and the oracle of the tests."""

from __future__ import annotations

import torch


def space_time_attention(
    qkv: torch.Tensor, num_frames: int, num_patches: int, axis: str, num_prefix_tokens: int, scale: float
) -> torch.Tensor:
    """Shapes and meaning as in the public function; any floating dtype, differentiable any number of times."""
    if axis == "joint":
        return _attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], scale)

    prefix, patches = qkv.split([num_prefix_tokens, num_frames * num_patches], dim=1)
    grid = patches.unflatten(1, (num_frames, num_patches))
    groups = grid.transpose(1, 2) if axis == "time" else grid  # (B, groups, members, 3, H, D)
    visible = torch.cat([prefix[:, None].expand(-1, groups.shape[1], -1, -1, -1, -1), groups], dim=2)
    out = _attend(groups[..., 0, :, :], visible[..., 1, :, :], visible[..., 2, :, :], scale)
    out = (out.transpose(1, 2) if axis == "time" else out).flatten(1, 2)
    prefix_out = _attend(prefix[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], scale)
    return torch.cat([prefix_out, out], dim=1)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(scale * q kᵀ) v for q (..., Lq, H, D) and k, v (..., Lk, H, D)."""
    scores = torch.einsum("...ihd,...jhd->...hij", q, k) * scale
    return torch.einsum("...hij,...jhd->...ihd", scores.softmax(dim=-1), v)

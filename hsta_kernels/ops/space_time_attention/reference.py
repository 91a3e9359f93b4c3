"""Space-time attention in plain PyTorch: the backend that runs anywhere, and the oracle of the tests."""

from __future__ import annotations

import torch

from hsta_kernels.ops.space_time_attention.grid import Grid


def space_time_attention(qkv: tuple[torch.Tensor, ...], grid: Grid) -> torch.Tensor:
    """Shapes and meaning as in the public function; any floating dtype, differentiable any number of times.

    Args:
        qkv: one packed tensor, or q, k and v.
        grid: who attends to whom.
    """
    q, k, v = qkv if len(qkv) == 3 else qkv[0].unbind(2)
    prefix = grid.num_prefix_tokens
    if grid.axis == "joint":
        if grid.prefix == "all":
            return _attend(q, k, v, grid.scale)
        return torch.cat([v[:, :prefix], _attend(q[:, prefix:], k[:, prefix:], v[:, prefix:], grid.scale)], dim=1)

    # From here on (B, groups, members, H, D).
    groups = [_grouped(part[:, prefix:], grid) for part in (q, k, v)]
    prefixes = [part[:, None, :prefix].expand(-1, groups[0].shape[1], -1, -1, -1) for part in (q, k, v)]
    visible = groups
    if grid.prefix != "none":
        visible = [torch.cat(parts, dim=2) for parts in zip(prefixes, groups, strict=True)]
    out = _ungrouped(_attend(groups[0], visible[1], visible[2], grid.scale), grid)
    if grid.prefix == "none":
        prefix_out = v[:, :prefix]
    elif grid.prefix == "frame_mean":
        prefix_out = _attend(prefixes[0], visible[1], visible[2], grid.scale).mean(1)
    else:
        prefix_out = _attend(q[:, :prefix], k, v, grid.scale)
    return torch.cat([prefix_out, out], dim=1)


def _grouped(patches: torch.Tensor, grid: Grid) -> torch.Tensor:
    if grid.token_order == "time_major":
        frames_first = patches.unflatten(1, (grid.num_frames, grid.num_patches))
        return frames_first.transpose(1, 2) if grid.axis == "time" else frames_first
    patches_first = patches.unflatten(1, (grid.num_patches, grid.num_frames))
    return patches_first if grid.axis == "time" else patches_first.transpose(1, 2)


def _ungrouped(groups: torch.Tensor, grid: Grid) -> torch.Tensor:
    as_stored = (grid.axis == "time") == (grid.token_order == "patch_major")
    return (groups if as_stored else groups.transpose(1, 2)).flatten(1, 2)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(scale * q kᵀ) v for q (..., Lq, H, D) and k, v (..., Lk, H, D)."""
    scores = torch.einsum("...ihd,...jhd->...hij", q, k) * scale
    return torch.einsum("...hij,...jhd->...ihd", scores.softmax(dim=-1), v)

"""Space-time attention in plain PyTorch: the backend that runs anywhere, and the oracle of the tests."""

from __future__ import annotations

import torch

from hsta_kernels.ops.philox import philox, threshold
from hsta_kernels.ops.space_time_attention import padded
from hsta_kernels.ops.space_time_attention.grid import Grid
from hsta_kernels.ops.space_time_attention.operands import NOTHING, Operands
from hsta_kernels.ops.space_time_attention.qk_norm import normalized
from hsta_kernels.ops.space_time_attention.rotary import rotated


def space_time_attention(
    qkv: tuple[torch.Tensor, ...],
    grid: Grid,
    operands: Operands = NOTHING,
) -> torch.Tensor:
    """Shapes and meaning as in the public function; any floating dtype, differentiable any number of times.

    Args:
        qkv: one packed tensor, or q, k and v.
        grid: who attends to whom.
        operands: the other tensors.
    """
    if grid.valid_frames is not None:
        return padded.each(space_time_attention, padded.clips(grid), qkv, operands)
    seed, rotary, affine, bias = operands
    q, k, v = qkv if len(qkv) == 3 else qkv[0].unbind(2)
    dtype = q.dtype
    if affine is not None and grid.qk_norm is not None:
        q, k = (normalized(*part, grid.qk_norm, grid.qk_norm_eps) for part in zip((q, k), affine, strict=True))
    if rotary is not None and grid.rotary_pairs is not None:
        q, k = (rotated(part, rotary, grid.rotary_pairs) for part in (q, k))
    q, k = q.to(dtype), k.to(dtype)
    prefix, patches = grid.num_prefix_tokens, slice(grid.num_prefix_tokens, None)
    kept = None if seed is None else _kept(grid, q.shape[0], q.shape[2], seed)
    if grid.axis == "joint":
        mask = None if kept is None else kept[:, 0]
        if grid.prefix == "all":
            return _attend(q, k, v, grid, mask, bias)
        among_patches = _attend(q[:, patches], k[:, patches], v[:, patches], grid, mask, bias)
        return torch.cat([v[:, :prefix], among_patches], dim=1)

    # From here on (B, groups, members, H, D). In a mask the prefix comes last, in the keys here it comes first.
    groups = [_grouped(part[:, patches], grid) for part in (q, k, v)]
    members = groups[0].shape[2]
    prefixes = [part[:, None, :prefix].expand(-1, groups[0].shape[1], -1, -1, -1) for part in (q, k, v)]
    visible, prefix_first = groups, kept
    if grid.prefix != "none":
        visible = [torch.cat(parts, dim=2) for parts in zip(prefixes, groups, strict=True)]
        prefix_first = None if kept is None else kept.roll(prefix, -1)
    of_members = of_prefix = None
    if prefix_first is not None:
        of_members, of_prefix = prefix_first[..., :members, :], prefix_first[..., members:, :]
    bias_of_members = bias_of_prefix = None
    if bias is not None:
        bias_of_members, bias_of_prefix = bias[:, -members:], bias[:, :-members]
    out = _ungrouped(_attend(groups[0], visible[1], visible[2], grid, of_members, bias_of_members), grid)
    if grid.prefix == "none":
        prefix_out = v[:, :prefix]
    elif grid.prefix == "frame_mean":
        prefix_out = _attend(prefixes[0], visible[1], visible[2], grid, of_prefix, bias_of_prefix).mean(1)
    else:
        if kept is not None:
            own, seen = kept[..., members:, members:], kept[..., members:, :members]
            patches_seen = _ungrouped(seen.permute(0, 1, 4, 2, 3), grid)  # (B, T·N, H, P)
            of_prefix = torch.cat([own[:, 0], patches_seen.permute(0, 2, 3, 1)], dim=-1)
        if bias_of_prefix is not None:  # the same in each group
            own, seen = bias_of_prefix[..., :prefix], bias_of_prefix[..., prefix:]
            of_groups = seen.permute(2, 0, 1).expand(1, groups[0].shape[1], -1, -1, -1)
            bias_of_prefix = torch.cat([own, _ungrouped(of_groups, grid)[0].permute(1, 2, 0)], dim=-1)
        prefix_out = _attend(q[:, :prefix], k, v, grid, of_prefix, bias_of_prefix)
    return torch.cat([prefix_out, out], dim=1)


def _kept(grid: Grid, batch: int, heads: int, seed: torch.Tensor) -> torch.Tensor:
    """Which probabilities dropout keeps: (B, groups, H, rows, rows), of a query and a key of one group.

    A group's rows are its members and after them the prefix tokens, if they take part. Joint attention is one group of
    all rows as they are stored. Word ``key % 4`` of the block of Philox with the counter ``(key // 4, query, group,
    sample·H + head)`` decides. What prefix queries see of the prefix, where their softmax is over all groups, is in
    group 0.
    """
    prefix = 0 if grid.prefix == "none" else grid.num_prefix_tokens
    groups, members = {
        "time": (grid.num_patches, grid.num_frames),
        "space": (grid.num_frames, grid.num_patches),
        "joint": (1, grid.num_frames * grid.num_patches),
    }[grid.axis]
    rows = members + prefix
    sample, head, query, key = (torch.arange(size, device=seed.device) for size in (batch, heads, rows, -(-rows // 4)))
    group = torch.arange(groups, device=seed.device)[:, None, None, None]
    sequence = (sample[:, None] * heads + head)[:, None, :, None, None]
    return philox((key, query[:, None], group, sequence), seed).flatten(-2)[..., :rows] >= threshold(grid.dropout_rate)


def _grouped(patches: torch.Tensor, grid: Grid) -> torch.Tensor:
    if grid.token_order == "time_major":
        frames_first = patches.unflatten(1, (grid.num_frames, grid.num_patches))
        return frames_first.transpose(1, 2) if grid.axis == "time" else frames_first
    patches_first = patches.unflatten(1, (grid.num_patches, grid.num_frames))
    return patches_first if grid.axis == "time" else patches_first.transpose(1, 2)


def _ungrouped(groups: torch.Tensor, grid: Grid) -> torch.Tensor:
    as_stored = (grid.axis == "time") == (grid.token_order == "patch_major")
    return (groups if as_stored else groups.transpose(1, 2)).flatten(1, 2)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid: Grid,
    kept: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """dropout(softmax(scale * q kᵀ + bias)) v for q (..., Lq, H, D), k, v (..., Lk, H, D) and bias (H, Lq, Lk)."""
    scores = torch.einsum("...ihd,...jhd->...hij", q, k) * grid.scale
    probabilities = (scores if bias is None else scores + bias).softmax(dim=-1)
    if kept is not None:
        probabilities = torch.where(kept, probabilities / (1 - grid.dropout_rate), 0.0)
    return torch.einsum("...hij,...jhd->...ihd", probabilities.to(v.dtype), v)

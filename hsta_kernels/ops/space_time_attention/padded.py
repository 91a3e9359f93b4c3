"""Clips of different lengths in one batch: the valid frames of a sample are a clip of their own.

Nothing else is read. Where frames follow each other, kernels write in place, so that padding costs its zeros alone. Of
frames that are valid here and there, by a mask, copies are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from hsta_kernels.ops.space_time_attention.grid import Grid
from hsta_kernels.ops.space_time_attention.operands import Operands


class Clips(NamedTuple):
    """Samples `first` to `last` of a batch, which have `grid.num_frames` valid frames of the `stored` ones: the first
    ones, or `frames`."""

    first: int
    last: int
    stored: int
    grid: Grid
    frames: tuple[int, ...] | None = None

    @property
    def in_place(self) -> bool:
        return self.frames is None and (self.grid.num_frames == self.stored or self.grid.token_order == "time_major")

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """The valid tokens of (B, L, ...), a copy unless `in_place`."""
        mine, grid = tokens[self.first : self.last], self.grid
        prefix = grid.num_prefix_tokens
        if self.frames is not None:
            return mine.index_select(1, self._tokens(self.frames, tokens.device))
        if self.in_place:
            return mine[:, : prefix + grid.num_frames * grid.num_patches]
        return torch.cat([mine[:, :prefix], self._patches(mine).flatten(1, 2)], dim=1)

    def put(self, tokens: torch.Tensor, valid: torch.Tensor) -> None:
        """Writes `valid`, as `of` gives it, to where it belongs in (B, L, ...), and zeros to the padding."""
        mine, prefix = tokens[self.first : self.last], self.grid.num_prefix_tokens
        if self.in_place:
            if valid.data_ptr() != mine.data_ptr():
                mine[:, : valid.shape[1]] = valid
            mine[:, valid.shape[1] :] = 0
        else:
            mine[:, :prefix] = valid[:, :prefix]
            mine[:, prefix:] = 0
            self._patches(mine).copy_(valid[:, prefix:].unflatten(1, (self.grid.num_patches, self.grid.num_frames)))

    def _tokens(self, frames: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Which tokens are the prefix and the patches of `frames`, in their order."""
        grid, frame = self.grid, torch.tensor(frames, device=device)
        patch = torch.arange(grid.num_patches, device=device)
        if grid.token_order == "time_major":
            patches = frame[:, None] * grid.num_patches + patch
        else:
            patches = patch[:, None] * self.stored + frame
        prefix = torch.arange(grid.num_prefix_tokens, device=device)
        return torch.cat([prefix, grid.num_prefix_tokens + patches.flatten()])

    def _patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, valid frames, ...) of tokens in patch-major order."""
        grid = self.grid
        stored = tokens[:, grid.num_prefix_tokens :].unflatten(1, (grid.num_patches, self.stored))
        return stored[:, :, : grid.num_frames]

    def operands(self, operands: Operands) -> Operands:
        """What of them is these clips'."""
        seed, rotary, affine, bias = operands
        if seed is not None:  # launches number their samples from zero: without seeds of their own all would drop alike
            seed = seed + self.first
        if rotary is not None:
            rotary = self.row_of_each(rotary[0]), self.row_of_each(rotary[1])
        if bias is not None:
            rows = self.bias_rows(bias.device)
            bias = bias.index_select(1, rows).index_select(2, rows)
        return Operands(seed, rotary, affine, bias)

    def bias_rows(self, device: torch.device) -> torch.Tensor:
        """Which rows of a group are those of the valid frames."""
        rows = torch.arange(self.grid._replace(num_frames=self.stored).group_rows, device=device)
        if self.grid.axis == "time" and self.frames is not None:
            prefix = self.grid.group_rows - self.grid.num_frames
            return torch.cat([rows[:prefix], prefix + torch.tensor(self.frames, device=device)])
        if self.grid.axis != "joint":
            return rows[: self.grid.group_rows]  # over space frames are groups
        none_of_prefix = self.grid.num_prefix_tokens if self.grid.prefix == "none" else 0
        return self.row_of_each(F.pad(rows, (none_of_prefix, 0)))[none_of_prefix:]

    def row_of_each(self, table: torch.Tensor) -> torch.Tensor:
        """Of a table that all samples share, (L, ...), the rows of the valid tokens."""
        return self.of(table[None].expand(self.last, *table.shape))[0]


def clips(grid: Grid) -> Iterator[Clips]:
    """Of a grid with `valid_frames`: a sample each, but those without padding that follow each other, which are one."""
    valid, first = grid.valid_frames or (), 0
    while first < len(valid):
        last = first + 1
        while valid[first] == grid.num_frames and last < len(valid) and valid[last] == grid.num_frames:
            last += 1
        yield Clips(first, last, grid.num_frames, grid._replace(num_frames=valid[first], valid_frames=None))
        first = last


def clips_of(frames: Sequence[tuple[int, ...]], grid: Grid) -> Iterator[Clips]:
    """Of the valid frames of each sample: samples that follow each other and have the same are one."""
    first = 0
    for mine, samples in itertools.groupby(frames):
        last = first + len(list(samples))
        yield Clips(first, last, grid.num_frames, grid._replace(num_frames=len(mine)), mine)
        first = last


def each(
    attend: Callable[..., torch.Tensor],
    of: Iterable[Clips],
    qkv: Sequence[torch.Tensor],
    operands: Operands,
) -> torch.Tensor:
    """`attend` on each clip, in operations that PyTorch differentiates."""
    outs = []
    for some in of:
        parts = tuple(some.of(part) for part in qkv)
        out = attend(parts, some.grid, some.operands(operands))
        padded = out.new_zeros((out.shape[0], qkv[0].shape[1], *out.shape[2:]))
        index = some.row_of_each(torch.arange(qkv[0].shape[1], device=out.device))
        outs.append(padded.index_copy(1, index, out))
    return torch.cat(outs)


def stats_shape(implementation: Any, qkv: Sequence[torch.Tensor], grid: Grid) -> tuple[int, ...]:
    """Those of all clips, one after the other."""
    return (sum(torch.Size(shape).numel() for _, _, shape in _calls(implementation, qkv, grid)),)


def forward(
    implementation: Any,
    qkv: Sequence[torch.Tensor],
    grid: Grid,
    operands: Operands,
) -> tuple[torch.Tensor, torch.Tensor]:
    part = qkv[0]
    out, stats = part.new_empty((*part.shape[:2], *part.shape[-2:])), []
    for some, parts, _ in _calls(implementation, qkv, grid):
        place = some.of(out) if some.in_place else None
        valid, statistics = implementation.forward(parts, some.grid, some.operands(operands), place)
        some.put(out, valid)
        stats.append(statistics.flatten())
    return out, torch.cat(stats) if stats else out.new_empty(0, dtype=torch.float32)


def backward(
    implementation: Any,
    grad_out: torch.Tensor,
    qkv: Sequence[torch.Tensor],
    out: torch.Tensor,
    stats: torch.Tensor,
    grid: Grid,
    operands: Operands,
    grad_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """Adds to `grad_bias`, which begins with zeros, what each clip gives to its rows."""
    grads = tuple(part.new_empty(part.shape) for part in qkv)
    grads_of_affine = () if operands.affine is None else (torch.zeros_like(operands.affine),)
    first = 0
    for some, parts, shape in _calls(implementation, qkv, grid):
        last = first + torch.Size(shape).numel()
        statistics = stats[first:last].view(shape).clone()  # GPU kernels want it to begin at a multiple of 16 bytes
        tensors = (some.of(grad_out), parts, some.of(out), statistics)
        places = tuple(some.of(grad) for grad in grads) if some.in_place else None
        mine = some.operands(operands)
        of_mine = None if grad_bias is None or mine.bias is None else torch.empty_like(mine.bias)
        valid = implementation.backward(*tensors, some.grid, mine, of_mine, places)
        if grad_bias is not None and of_mine is not None:
            rows = some.bias_rows(grad_bias.device)
            grad_bias[:, rows[:, None], rows] += of_mine
        for grad, of_valid in zip(grads, valid[: len(grads)], strict=True):
            some.put(grad, of_valid)
        for total, of_clips in zip(grads_of_affine, valid[len(grads) :], strict=True):
            total += of_clips
        first = last
    return *grads, *grads_of_affine


def _calls(
    implementation: Any, qkv: Sequence[torch.Tensor], grid: Grid
) -> Iterator[tuple[Clips, tuple[torch.Tensor, ...], tuple[int, ...]]]:
    """For each launch its clips, their part of `qkv`, and the shape of its statistics."""
    for some in clips(grid):
        parts = tuple(some.of(part) for part in qkv)
        yield some, parts, implementation.stats_shape(parts, some.grid)

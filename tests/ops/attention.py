"""What the tests of space-time attention share: calls, and the definition of who sees whom as a loop."""

from __future__ import annotations

import itertools
import math
from functools import partial

import torch

from hsta_kernels.ops import space_time_attention
from hsta_kernels.ops.philox import philox
from hsta_kernels.ops.space_time_attention import autograd
from hsta_kernels.ops.space_time_attention.grid import AXES, Grid
from tests.kernels import Kernel
from tests.ops.parity import assert_parity

WHO_SEES_WHOM = [*itertools.product(AXES, ("all", "none")), ("space", "frame_mean")]


def attention(grid, axis: str, prefix: int = 1):
    return partial(space_time_attention, grid_size=grid, axis=axis, num_prefix_tokens=prefix)


def of_three(function):
    """As a function of q, k and v."""
    return lambda q, k, v, **more: function((q, k, v), **more)


def check(qkv64, grid, axis, prefix, dtype, kernel: Kernel, grad64=None, strided=lambda t: t):
    """`qkv64` and `grad64`, rounded to `dtype`; `strided` lays the former out anew."""
    if grad64 is None:
        grad64 = torch.randn(qkv64.shape[:2] + qkv64.shape[3:], dtype=torch.float64)
    qkv, grad = strided(qkv64.to(kernel.device, dtype)), grad64.to(kernel.device, dtype)
    case = f"{axis} {grid} P={prefix} D={qkv.shape[-1]}"
    return assert_parity(attention(grid, axis, prefix), {"qkv": qkv}, [grad], kernel, case=case)


def check_ops(qkv, grid: Grid, backend: str, rotary=(None, None), affine=None, bias=None) -> None:
    """Schema and fake results of the custom ops; of the backward op also where a bias learns."""
    check = partial(torch.library.opcheck, test_utils=("test_schema", "test_faketensor"))
    arguments = ([qkv], *grid, None, *rotary, affine, bias, backend)
    check(autograd._forward, arguments)
    out, stats = autograd._forward(*arguments)
    for learn in (False, True)[: 1 + grid.biased]:
        check(autograd._backward, (out, arguments[0], out, stats, *arguments[1:], learn))


def random(shape, kernel: Kernel) -> dict[str, torch.Tensor]:
    return {"qkv": torch.randn(shape).to(kernel.device)}


def looped(
    qkv: torch.Tensor, grid, axis: str, prefix: int, prefix_sees: str, token_order: str, rate: float = 0, seed: int = 0
) -> torch.Tensor:
    """Who sees whom and what dropout keeps of it, spelled out token by token."""
    frames, patches = grid
    members = {"time": frames, "space": patches, "joint": frames * patches}[axis]
    out = torch.empty(qkv.shape[:2] + qkv.shape[3:], dtype=qkv.dtype)
    if token_order == "time_major":
        place = [(t, n) for t in range(frames) for n in range(patches)]
    else:
        place = [(t, n) for n in range(patches) for t in range(frames)]
    place = [None] * prefix + place

    def seen_by(i: int) -> list[list[int]]:
        """The keys of a query; several lists where its output is the mean of several."""
        mine = place[i]
        if mine is None and prefix_sees == "frame_mean":
            return [[j for j, other in enumerate(place) if other is None or other[0] == t] for t in range(frames)]
        if mine is None:
            return [list(range(len(place)))] if prefix_sees == "all" else [[i]]
        alike = [
            j for j, other in enumerate(place)
            if other and (axis == "joint" or mine[axis == "time"] == other[axis == "time"])
        ]  # fmt: skip
        return [alike if prefix_sees == "none" else [*range(prefix), *alike]]

    def row(i: int) -> int:
        """The number of a token in its group, members first."""
        if axis == "joint":
            return i if prefix_sees == "all" else i - prefix
        return members + i if place[i] is None else place[i][axis == "space"]

    def kept(i: int, j: int, frame: int, head: int) -> torch.Tensor:
        """Of each sample, whether query i keeps key j; `frame` says of which frame, where both are prefix tokens."""
        both = [other for other in (place[i], place[j]) if other]
        group = 0 if axis == "joint" else both[0][axis == "time"] if both else frame
        sequence = torch.arange(qkv.shape[0]) * qkv.shape[3] + head
        counter = torch.tensor(row(j) // 4), torch.tensor(row(i)), torch.tensor(group), sequence
        return philox(counter, torch.tensor(seed))[:, row(j) % 4] >= rate * 2**32

    for i in range(len(place)):
        for h in range(qkv.shape[3]):
            outs = []
            for frame, seen in enumerate(seen_by(i)):
                q, k, v = qkv[:, i, 0, h], qkv[:, seen, 1, h], qkv[:, seen, 2, h]
                p = torch.softmax((k @ q[..., None]).squeeze(-1) / math.sqrt(qkv.shape[4]), dim=-1)
                if rate and not (place[i] is None and prefix_sees == "none"):
                    p = p * torch.stack([kept(i, j, frame, h) for j in seen], dim=1) / (1 - rate)
                outs.append((p[:, None] @ v).squeeze(1))
            out[:, i, h] = torch.stack(outs).mean(0)
    return out

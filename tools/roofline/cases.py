"""The shapes of the benchmarks on a GPU, their floors, and the shares of the roof that are asked of an H200."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from benchmarks.case import HEAD_DIM, PATCHES, WIDTH
from tools.ahead_of_time import Launch, absorbed_attention, attention, crossmodal, gelu, launches, norm

ROWS = 589 * 64
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_BACKWARD = ("sum_prefix", "sum_parts", "row_gradients")


@dataclass(frozen=True)
class Case:
    """Forward or backward pass of an operator.

    `elements` and `flops` are the floor: what any implementation must move and compute. `target` is in shares of a
    copy's bandwidth, or in FLOP a second where it is above one.
    """

    name: str
    backward: bool
    run: Callable[[torch.dtype], object]
    elements: int
    flops: float
    target: float
    others: tuple[int, ...] = ()  # elements that each of PyTorch's own launches moves

    @property
    def title(self) -> str:
        return f"{self.name}, {'backward' if self.backward else 'forward'}"

    def launches(self, dtype: torch.dtype, arch: int) -> list[Launch]:
        return [
            launch
            for launch in _both_ways(self.run, dtype, arch)
            if ("backward" in launch.name or launch.name in _BACKWARD) == self.backward
        ]


@functools.cache
def _both_ways(run: Callable[[torch.dtype], object], dtype: torch.dtype, arch: int) -> list[Launch]:
    return launches(lambda: run(dtype), arch)


def _attention(
    axis: str, frames: int, batch: int, targets: tuple[float, float], patches: int = PATCHES, prefix_tokens: int = 1,
    head_dim: int = HEAD_DIM, of: str = "", **who_sees_whom: str,
) -> list[Case]:  # fmt: skip
    tokens, width = batch * (prefix_tokens + frames * patches), WIDTH // HEAD_DIM * head_dim
    length = {"time": frames, "space": patches, "joint": frames * patches}[axis]
    length += prefix_tokens if who_sees_whom.get("prefix") != "none" else 0
    size = {"time": f"T = {frames}", "space": f"N = {patches}", "joint": f"{frames * patches:,} tokens"}[axis]
    run = attention(axis, frames, patches, prefix_tokens, head_dim, batch, **who_sees_whom)
    return [
        Case(
            f"{of}{axis}, {size}, B = {batch}", backward, run, (7 if backward else 4) * tokens * width,
            (10 if backward else 4) * tokens * length * width, targets[backward],
        )
        for backward in (False, True)
    ]  # fmt: skip


def _of_patched_models() -> list[Case]:
    """Of what else `hsta_kernels.patch` knows: clips of 224 px, and a film of 256 px in a UNet's first block."""
    over_time, over_space, of_all = (0.9, 0.8), (0.65, 0.45), (450e12, 330e12)
    timesformer = {"of": "TimeSformer over ", "token_order": "patch_major"}
    film = {"patches": 32 * 32, "prefix_tokens": 0, "token_order": "patch_major"}
    return [
        *_attention("time", 8, 8, over_time, prefix="none", **timesformer),
        *_attention("time", 32, 8, over_time, prefix="none", **timesformer),
        # Backward, machine_code.py does not tell the branches of full and tail tiles apart.
        *_attention("space", 8, 8, over_space, prefix="frame_mean", **timesformer)[:1],
        *_attention("joint", 16, 1, of_all, of="ViViT, "),
        *_attention("time", 16, 2, over_time, head_dim=40, of="AnimateDiff over ", **film),
        *_attention("time", 14, 2, over_time, of="Stable Video Diffusion over ", **film),
    ]  # fmt: skip


def _crossmodal(tokens: int, batch: int) -> list[Case]:
    cases = []
    for backward, targets in ((False, (0.85, 0.70)), (True, (0.70, 0.70))):
        for whole, target in zip((False, True), targets, strict=True):
            name = f"crossmodal {'operator' if whole else 'pass'}, N = {tokens:,}, B = {batch}"
            run = (crossmodal if whole else absorbed_attention)(tokens, WIDTH, batch=batch)
            elements = (2 if backward else 1) * batch * tokens * WIDTH
            cases.append(Case(name, backward, run, elements, 0, target))
    return cases


def _rows() -> list[Case]:
    """Partial gradients are summed by PyTorch: a program of add_layer_norm, of which there are three a multiprocessor,
    leaves a row of float32 for the weight and one for the bias, and 32 rows one of bias_gelu's dtype."""
    cases: list[Case] = []
    of_norm = norm(ROWS, WIDTH)
    of_gelu = [(rate, gelu(ROWS, 4 * WIDTH, rate), target) for rate, target in ((0.0, 0.85), (0.1, 0.75))]
    for backward in (False, True):
        sums = (4 * 3 * 132 * WIDTH,) if backward else ()
        cases.append(Case("add_layer_norm", backward, of_norm, 4 * ROWS * WIDTH, 0, 0.9, sums))
        for rate, run, target in of_gelu:
            size, sums = ROWS * 4 * WIDTH, (2 * (ROWS // 32) * 4 * WIDTH,) if backward else ()
            name = "bias_gelu and dropout" if rate else "bias_gelu"
            cases.append(Case(name, backward, run, (3 if backward else 2) * size, 0, target, sums))
    return cases


CASES = [
    *(case for frames in (3, 8, 16) for case in _attention("time", frames, 32, (0.9, 0.8))),
    *_attention("space", 3, 32, (0.65, 0.45)),
    # Backward, sm_80's compiler leaves out what it can of δ's product, much of this short group's.
    *_attention("space", 3, 32, (0.65, 0.45), patches=49)[:1],
    *_attention("joint", 3, 1, (450e12, 330e12)),
    *_attention("joint", 8, 1, (450e12, 330e12)),
    *_attention("joint", 8, 8, (450e12, 330e12)),
    *_crossmodal(588, 8),
    *_crossmodal(588, 64),
    *_crossmodal(1568, 64),
    *_rows(),
    *_of_patched_models(),
]

# FLOP a second by elements a head: flash attention in Triton on an H100, forward, bfloat16, 4,096 tokens, as the paper
# of FlashAttention-3 shows it (arXiv 2407.08608, figure 5).
KNOWN = {64: 400e12, 128: 390e12}


def known(head_dim: int) -> tuple[Launch, float]:
    """Our kernel doing that work, in tiles as large as Triton's own example has, and its FLOP."""
    frames, patches, batch, heads = 9, 455, 6, 12
    tokens, tile = 1 + frames * patches, 128
    noted = launches(lambda: attention("joint", frames, patches, 1, head_dim, batch)(torch.bfloat16), 90)[0]
    options = {"BLOCK_M": tile, "BLOCK_N": 64, "TAIL_M": 0, "TAIL_N": 0, "num_warps": 8, "num_stages": 3}
    launch = replace(noted, programs=batch * heads * tokens // tile, options=noted.options | options)
    return launch, 4 * batch * heads * tokens**2 * head_dim

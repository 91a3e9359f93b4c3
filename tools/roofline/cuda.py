"""The Triton kernels' model for those in CUDA C++: crossmodal attention's pass, a launch forward and one backward.

Rows come by bulk copies while a block computes with those before. So a tile takes as long as its bytes, or as what its
warps execute, whichever is longer; before and after its tiles a block reads u, and its cluster adds up. `table` is part
of docs/cuda-resources.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tools.roofline.machine_code import MEMORY, Instruction, Span, _add, _Warp, parse
from tools.roofline.model import GPUS, SCHEDULERS, Gpu, throughput

WIDTH, HEADS, E = 768, 12, 2
CASES = ((588, 8), (588, 64), (1568, 64))  # tokens, samples
WARPS = {"forward": 8, "backward": 6}
# As csrc/cuda/absorbed_rows.h shares a sample's rows out.
ROWS_OF_WARP, ROWS_OF_BLOCK, MOST_BLOCKS = 8, 192, 8
RARE = 800  # instructions: what rows far from zero take besides is longer, and all else shorter


@dataclass
class Kernel:
    """A warp's code: cycles before and after its tiles, and what a tile takes."""

    warps: int
    before: float
    after: float
    tile: Span


def read(sass: str, warps: int) -> Kernel:
    """From the listing of a kernel."""
    code = parse(sass)
    at = {instruction.address: i for i, instruction in enumerate(code)}
    jumps = [(i, at.get(c.target or -1, i)) for i, c in enumerate(code)]
    first, last = next((to, i) for i, to in jumps if i - to > 1000)
    rare = {
        i
        for begin, end in jumps
        if first < end <= last and end - begin > RARE and not any(c.name == "BAR" for c in code[begin:end])
        for i in range(begin + 1, end)
    }
    turn = [code[i] for i in range(first, last + 1) if i not in rare]
    exit_ = next(i for i, c in enumerate(code) if i > last and c.name == "EXIT" and not c.predicate)
    tile = Span()
    _add(turn, tile)
    tile.cycles = _cycles(turn, 0, times=3)
    return Kernel(warps, _cycles(code[:first], MEMORY), _cycles(code[last + 1 : exit_], MEMORY), tile)


def _cycles(code: list[Instruction], memory: float, times: int = 1) -> float:
    """Of the last of so many turns: by then what is waited for comes from the one before."""
    warp, before = _Warp(memory), 0.0
    for _ in range(times):
        before = warp.now
        for instruction in code:
            warp.issue(instruction)
    return warp.now - before


def seconds(gpu: Gpu, kernel: Kernel, tokens: int, batch: int, backward: bool) -> float:
    """The time of a launch."""
    rows = tokens + 1
    blocks = min(math.ceil(rows / ROWS_OF_BLOCK), MOST_BLOCKS)
    of_block = math.ceil(math.ceil(rows / blocks) / ROWS_OF_WARP) * ROWS_OF_WARP
    blocks = math.ceil(rows / of_block)
    tiles = math.ceil(of_block / (kernel.warps * ROWS_OF_WARP))
    at_a_time = min(batch * blocks, gpu.multiprocessors)  # a multiprocessor holds one
    tile = kernel.tile
    pipes, matrix = max(tile.instructions, 2 * tile.half_rate), tile.flops * SCHEDULERS / gpu.warp_matrix
    delay, groups = max(0.0, tile.cycles - tile.instructions - matrix), kernel.warps / SCHEDULERS
    some, more = (throughput([pipes, matrix], delay, n) for n in (math.floor(groups), math.ceil(groups)))
    computing = groups / (some + (more - some) * (groups % 1))
    a_byte = gpu.clock * at_a_time  # cycles times bytes a second, of one multiprocessor
    arriving = of_block / tiles * WIDTH * E * (2 if backward else 1) * a_byte / gpu.copy
    heads = HEADS * WIDTH * 4 * (3 if backward else 1) * a_byte / gpu.l2
    once = kernel.before + kernel.after + heads
    waves = math.ceil(batch * blocks / gpu.multiprocessors)
    return waves * (once + tiles * max(computing, arriving)) / gpu.clock + gpu.launch


def table(listings: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Microseconds, and shares of a copy; the listings of each source's kernels by their names."""
    kernels = {}
    for which, warps in WARPS.items():
        found = listings[f"absorbed_attention_{which}"]
        sass = next(sass for name, sass in found.items() if f"BFloat16ELi{WIDTH}E" in name)
        kernels[which] = read(sass, warps)
    gpus = [gpu for gpu in GPUS if gpu.arch == 90]
    lines = [f"| bfloat16, C = {WIDTH} | {' | '.join(gpu.name for gpu in gpus)} |", "|---|" + "---|" * len(gpus)]
    for (tokens, batch), which in ((case, which) for case in CASES for which in WARPS):
        backward = which == "backward"
        floor = batch * tokens * WIDTH * E * (2 if backward else 1)
        cells = []
        for gpu in gpus:
            time = seconds(gpu, kernels[which], tokens, batch, backward)
            cells.append(f"{time * 1e6:.1f} µs, {100 * floor / gpu.copy / time:.0f} %")
        lines.append(f"| N = {tokens:,}, B = {batch}, {which} | {' | '.join(cells)} |")
    return lines

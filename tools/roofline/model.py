"""How long a kernel takes on a GPU that is not here: a multiprocessor as a queueing network, its warps as customers.

A group of four warps, one on each scheduler, takes its turns at the memory, at the multiprocessor's pipes and at its
matrix unit, and in between waits for what it has asked for. With more groups at a time, waiting overlaps with others'
work, until one of the three is always busy. Mean value analysis (Reiser and Lavenberg, 1980) says how much n groups get
done, without a number to be fitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from tools.ahead_of_time import Launch
from tools.roofline.kernels import Way, Work
from tools.roofline.machine_code import Code, Span


@dataclass(frozen=True)
class Gpu:
    """One card, in bytes, seconds and FLOP. What the numbers rest on is said in docs/roofline.md."""

    name: str
    arch: int
    multiprocessors: int
    clock: float  # Hz
    copy: float  # bytes a second, read plus written
    l2: float  # bytes a second between L2 and the multiprocessors
    l2_size: float
    shared_memory: int  # of a multiprocessor
    matrix: float  # FLOP a cycle and multiprocessor in half types, by wgmma or tcgen05 where there is one
    warp_matrix: float  # the same by mma
    latency: float  # cycles that a load takes
    launch: float = 2e-6  # seconds from the end of a kernel to the work of the next one, in a CUDA graph
    dependent: float = 1e-6  # the same to one whose programs have been placed before


_COPIED = 4.3 / 4.8  # share of the data sheet's bandwidth that a copy reached on an H200
GPUS = (
    Gpu("A100", 80, 108, 1.41e9, 2.039e12 * _COPIED, 4.0e12, 40e6, 164 << 10, 2048, 2048, 600),
    Gpu("H100", 90, 132, 1.83e9, 3.0e12, 5.5e12, 50e6, 228 << 10, 4096, 0.62 * 4096, 650),
    Gpu("H200", 90, 132, 1.83e9, 4.3e12, 5.5e12, 50e6, 228 << 10, 4096, 0.62 * 4096, 650),
    Gpu("B200", 100, 148, 1.85e9, 8e12 * _COPIED, 9e12, 126e6, 228 << 10, 8192, 2048, 800),
)
REGISTERS, WARPS, BLOCKS, SCHEDULERS = 65536, 64, 32, 4
_SPECIAL = 8  # cycles a scheduler's four lanes take for 32 functions


def variants(gpu: Gpu) -> tuple[Gpu, Gpu]:
    """The same card if what is assumed is worse, and if it is better."""
    worse = replace(
        gpu, l2=max(0.8 * gpu.l2, gpu.copy), latency=1.3 * gpu.latency, launch=3e-6, dependent=2e-6,
        clock=0.9 * gpu.clock,
    )  # fmt: skip
    return worse, replace(gpu, l2=1.2 * gpu.l2, latency=0.8 * gpu.latency, launch=1e-6, dependent=0.2e-6)


@dataclass(frozen=True)
class Prediction:
    """Of one launch; the shares are those of its time in which a resource is busy."""

    seconds: float
    blocks: int  # at a time on a multiprocessor
    waves: float
    memory: float
    l2: float
    pipes: float
    matrix: float
    instructions: float  # of a warp
    in_flight: int  # bytes that a multiprocessor has asked for at most
    needed: int  # bytes that cover the memory's latency at the speed of a copy

    @property
    def limit(self) -> str:
        shares = {"memory": self.memory, "L2": self.l2, "instructions": self.pipes, "matrix unit": self.matrix}
        name = max(shares, key=lambda key: shares[key])
        return name if shares[name] >= 0.8 else f"waiting ({name} busy {100 * shares[name]:.0f} %)"


def resident(gpu: Gpu, code: Code, warps: int) -> int:
    """How many blocks a multiprocessor holds at a time."""
    registers = warps * math.ceil(code.registers * 32 / 256) * 256
    shared = math.ceil((code.shared_memory + 1024) / 128) * 128
    return min(BLOCKS, WARPS // warps, REGISTERS // registers, gpu.shared_memory // shared)


def throughput(demands: list[float], delay: float, customers: int) -> float:
    """How many get done in a cycle of so many at a time, by mean value analysis."""
    queues, rate = [0.0] * len(demands), 0.0
    for n in range(1, customers + 1):
        residence = [demand * (1 + queue) for demand, queue in zip(demands, queues, strict=True)]
        rate = n / (delay + sum(residence))
        queues = [rate * time for time in residence]
    return rate


def executed(code: Code, work: Work) -> Span:
    """What a warp executes, on average over the paths that blocks take."""
    total = Span()
    ways = work.ways or [Way(1 / len(code.paths), (1.0,) * len(path.loops)) for path in code.paths]
    for path, way in zip(code.paths, ways, strict=True):
        for span, times in zip([path.once, *path.loops], [1.0, *way.trips], strict=True):
            for field in fields(Span):
                more = way.share * times * getattr(span, field.name)
                setattr(total, field.name, getattr(total, field.name) + more)
    return total


def predict(gpu: Gpu, programs: int, warps: int, code: Code, work: Work) -> Prediction:
    """The time of a launch of `programs` blocks."""
    run = executed(code, work)
    groups = warps / SCHEDULERS  # of a block; what follows are cycles of one
    pipes = max(run.instructions, 2 * run.half_rate, _SPECIAL * run.special)
    matrix = (work.matrix_flops / gpu.matrix + work.warp_matrix_flops / gpu.warp_matrix) / programs / groups
    cycles = gpu.clock * gpu.multiprocessors / programs / groups
    reread = work.reread if work.reread > gpu.l2_size / 2 else 0
    dram, l2 = cycles * (work.bytes + reread) / gpu.copy, cycles * work.l2_bytes / gpu.l2
    alone = run.cycles + run.waits * gpu.latency
    a_multiprocessor = math.ceil(programs / gpu.multiprocessors)
    blocks = resident(gpu, code, warps)
    at_a_time = min(blocks, a_multiprocessor)
    delay = max(0.0, alone - run.instructions - matrix)
    rate = throughput([max(dram, l2), pipes, matrix], delay, max(1, round(at_a_time * groups))) / groups
    in_flight = max(path.in_flight for path in code.paths) * warps * at_a_time
    busy = rate * groups * programs / gpu.multiprocessors / a_multiprocessor
    return Prediction(
        seconds=a_multiprocessor / rate / gpu.clock,
        blocks=blocks,
        waves=programs / (gpu.multiprocessors * blocks),
        memory=busy * dram,
        l2=busy * l2,
        pipes=busy * pipes,
        matrix=busy * matrix,
        instructions=run.instructions,
        in_flight=in_flight,
        needed=round(gpu.copy * gpu.latency / gpu.clock / gpu.multiprocessors),
    )


def gaps(gpu: Gpu, launches: Iterable[Launch], others: int) -> float:
    """Seconds between the kernels of a call replayed in a graph, with that before the first; PyTorch has `others`."""
    return others * gpu.launch + sum(gpu.dependent if launch.dependent else gpu.launch for launch in launches)

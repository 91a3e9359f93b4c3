"""What the machine code of a kernel says of its time: instructions, and how long one block alone takes.

The control codes that ptxas writes say when an instruction may issue: cycles to wait, and scoreboards to wait for. So a
warp that has its scheduler to itself can be followed through the code, given how long memory takes. Blocks of one warp
a scheduler do run like that, but for each other; `model.py` adds the others.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from typing import NamedTuple

import triton

from tools.ahead_of_time import _CUOBJDUMP, Launch, compile_for

TRITON = triton.__version__
# Cycles until a result is there, of the order that microbenchmarks of sm_80 and sm_90 publish (arXiv 2402.13499:
# shared memory 29); a barrier's are assumed. What is not named: READY after issue, operands read after READ.
LATENCY = {"LDS": 29, "LDSM": 33, "SHFL": 24, "MUFU": 24, "LDC": 30, "LDTM": 40}
READY, READ, BARRIER, MATRIX, TENSOR = 24, 15, 20, 20, 150
MEMORY = 650  # of a load, to tell what is waited for: between this and none, cycles are taken to grow evenly
# Half of the lanes compute integers, compare, select and permute (64 a cycle and multiprocessor).
HALF_RATE = re.compile(
    r"IADD3|IMAD|LOP3|SHF|LEA|PRMT|SEL|[IF]SETP|FSEL|[IF]MNMX|F2FP|PLOP3|VIADD|P2R|R2P|ISCADD|IABS|POPC|SGXT|BMSK"
)
_LINE = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/\s+/\* 0x([0-9a-f]{16}) \*/", re.MULTILINE
)
_MOVES_BY_MULTIPLYING = re.compile(r"IMAD\.(MOV|SHL|IADD)")  # on the other half of the lanes


class Instruction(NamedTuple):
    address: int
    text: str  # without its predicate
    predicate: str
    control: int

    @property
    def name(self) -> str:
        return self.text.split()[0].split(".")[0]

    @property
    def target(self) -> int | None:
        found = re.search(r"\b0x([0-9a-f]+)", self.text) if self.name == "BRA" else None
        return int(found[1], 16) if found else None


@dataclass
class Span:
    """A piece of code: of a path, all that is done once; of a loop, one turn of it."""

    instructions: float = 0
    half_rate: float = 0
    special: float = 0  # of the unit for 2^x, 1/x and square roots
    flops: float = (
        0  # a warp's share of what the matrix unit is told to multiply; tcgen05's are not in its instructions
    )
    cycles: float = 0  # of a warp alone, if memory answered at once
    waits: float = 0  # how many times it waits for memory, one after the other


@dataclass
class Path:
    once: Span = field(default_factory=Span)
    loops: list[Span] = field(default_factory=list)
    in_flight: int = 0  # bytes that a warp has asked memory for and not got, at most


@dataclass
class Code:
    registers: int
    shared_memory: int
    spills: int
    paths: list[Path]  # a kernel with full and tail tiles has a path for either


def parse(sass: str) -> list[Instruction]:
    """The instructions of a listing of cuobjdump's."""
    found = []
    for address, text, control in _LINE.findall(sass):
        predicate, text = re.match(r"(@!?U?P\w+ +)?(.*)", text).groups()  # type: ignore[union-attr]
        found.append(Instruction(int(address, 16), text, (predicate or "").strip(), int(control, 16) >> 41))
    return found


def _always(instruction: Instruction, name: str) -> bool:
    return instruction.name == name and not instruction.predicate and not re.search(r"\bU?P\d", instruction.text)


def ways(code: list[Instruction]) -> list[list[int]]:
    """The ways from the first instruction to an exit, each loop once: one, or two where a branch chooses between two
    long pieces of code, of which the first does not run into the second.

    What other branches skip is gone through, but for calls, which are the rare cases of divisions and roots, and for
    turns of waiting for a barrier, which lie behind the exit. A way with fewer loops is that of a loop with no turns.
    """
    at = {instruction.address: i for i, instruction in enumerate(code)}

    def walk(other: bool) -> list[int] | None:
        way: list[int] = []
        i, forked = 0, False
        while not _always(code[i], "EXIT"):
            way.append(i)
            to = at.get(code[i].target or -1, -1)
            skipped = code[i + 1 : to]
            ends = len(skipped) > 200 and (_always(code[to - 1], "EXIT") or _always(code[to - 1], "BRA"))
            fork = ends and not forked and code[to].name != "SYNCS" and not _always(code[i], "BRA")
            rare = len(skipped) < 40 and any(s.name == "CALL" for s in skipped)
            forked |= fork
            i = to if to > i and (rare or (fork and other) or _always(code[i], "BRA")) else i + 1
        return [*way, i] if forked or not other else None

    found = [way for way in (walk(False), walk(True)) if way]
    most = max(len(loops_of(code, way)) for way in found)
    return [way for way in found if len(loops_of(code, way)) == most]


def loops_of(code: list[Instruction], way: list[int]) -> list[tuple[int, int]]:
    """Places in `way` of the innermost loops' first and last instructions; waiting for a barrier is none."""
    at = {code[i].address: place for place, i in enumerate(way)}
    found: list[tuple[int, int]] = []
    for place, i in enumerate(way):
        first = at.get(code[i].target or -1, place)
        if first < place - 8 and not any(first <= start for start, _ in found):
            found.append((first, place))
    return found


class _Warp:
    """A warp that issues as its control codes let it."""

    def __init__(self, memory: float) -> None:
        self.memory, self.now, self.ready = memory, 0.0, [0.0] * 6
        self.copies = self.product = self.matrix_free = 0.0
        self.groups: list[float] = []
        self.loads: list[tuple[float, int]] = []  # (arrival, bytes)
        self.in_flight = 0

    def issue(self, code: Instruction) -> None:
        stall, write, read, wait = code.control & 15, code.control >> 5 & 7, code.control >> 8 & 7, code.control >> 11
        self.now = max([self.now, *(self.ready[b] for b in range(6) if wait >> b & 1)])
        name, text = code.name, code.text
        latency = float(LATENCY.get(name, READY))
        if name in ("LDG", "LDGSTS"):
            latency = self.memory
            width = re.search(r"\.(64|128)\b", text)
            self.loads = [load for load in self.loads if load[0] > self.now]
            self.loads.append((self.now + latency, 4 * int(width[1]) if width else 128))
            self.in_flight = max(self.in_flight, sum(size for _, size in self.loads))
        if name == "LDGSTS":
            self.copies = self.now + latency
        elif name == "LDGDEPBAR":
            self.groups.append(self.copies)
        elif name == "DEPBAR" and (left := re.search(r"SB0, 0x(\w+)", text)):
            done = self.groups[: len(self.groups) - int(left[1], 16)]
            self.now = max([self.now, *done])
        elif name == "HGMMA":
            columns = int(text.split(".")[1].split("x")[1])
            self.matrix_free = max(self.matrix_free, self.now) + columns / 2
            self.product = self.matrix_free + MATRIX
        elif name == "WARPGROUP" and "DEPBAR" in text:
            self.now = max(self.now, self.product)
        elif name == "UTCBAR":
            self.product = self.now + TENSOR
        elif name == "SYNCS" and "TRYWAIT" in text:
            self.now = max(self.now, self.product)
        elif name == "BAR":
            self.now += BARRIER
        if write < 6 and name != "LDGDEPBAR":
            self.ready[write] = max(self.ready[write], self.now + latency)
        if read < 6:
            self.ready[read] = max(self.ready[read], self.now + READ)
        self.now += max(stall, 1)


def _flops(code: Instruction) -> float:
    if code.name == "HGMMA":
        rows, columns, terms = map(int, re.findall(r"\d+", code.text)[:3])
        return 2 * rows * columns * terms / 4  # of four warps
    return {"HMMA.16816": 4096, "HMMA.1688": 2048}.get(".".join(code.text.split(".")[:2]), 0)


def _add(code: list[Instruction], to: Span) -> None:
    to.instructions += len(code)
    to.half_rate += sum(1 for c in code if HALF_RATE.match(c.name) and not _MOVES_BY_MULTIPLYING.match(c.text))
    to.special += sum(c.name == "MUFU" for c in code)
    to.flops += sum(map(_flops, code))


def _timed(steps: list[Instruction], loops: list[tuple[int, int]], memory: float) -> tuple[list[float], int]:
    """Cycles outside of loops, then of a turn of each; and the bytes in flight. A loop's third turn counts: then its
    pipeline is full."""
    warp, place = _Warp(memory), 0
    turns: list[float] = []
    for first, last in loops:
        for step in steps[place:first]:
            warp.issue(step)
        for _ in range(3):
            before = warp.now
            for step in steps[first : last + 1]:
                warp.issue(step)
        turns.append(warp.now - before)
        place = last + 1
    for step in steps[place:]:
        warp.issue(step)
    return [warp.now - 3 * sum(turns), *turns], warp.in_flight


def follow(code: list[Instruction], way: list[int]) -> Path:
    """A path's counts and cycles."""
    steps, loops = [code[i] for i in way], loops_of(code, way)
    path = Path(loops=[Span() for _ in loops])
    place = 0
    for (first, last), loop in zip(loops, path.loops, strict=True):
        _add(steps[place:first], path.once)
        _add(steps[first : last + 1], loop)
        place = last + 1
    _add(steps[place:], path.once)
    at_once, _ = _timed(steps, loops, 0)
    late, path.in_flight = _timed(steps, loops, MEMORY)
    for span, cycles, more in zip([path.once, *path.loops], at_once, late, strict=True):
        span.cycles, span.waits = cycles, round((more - cycles) / MEMORY, 3)
    return path


def read(launch: Launch, arch: int) -> Code:
    """Compiles a launch for an architecture and reads the result."""
    compiled = compile_for(launch, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [str(_CUOBJDUMP), "--dump-resource-usage", "-sass", cubin.name]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = parse(sass)
    return Code(
        registers=int(re.findall(r"REG:(\d+)", sass)[-1]),
        shared_memory=compiled.metadata.shared,
        spills=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        paths=[follow(code, way) for way in ways(code)],
    )

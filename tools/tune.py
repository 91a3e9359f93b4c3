"""Chooses the launch configurations of the Triton kernels and rewrites hsta_kernels/ops/launch/triton_table.py.

    python -m tools.tune                  # on a GPU: its architecture's rows, by measured time
    python -m tools.tune --compile-only   # anywhere: a row that spills gets the first candidate that does not

A candidate that wants more shared memory than the architecture has, or spills registers where another does not, is
never measured. Half types come first, and the table is written after each row: what --minutes do not reach stays as it
was, and is named. What differs from the rows of older versions of Triton is written for the installed one and later
ones: the compilers differ in what they hold in registers. What changed is printed at the end.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import triton

from hsta_kernels.ops.launch import triton as launching
from hsta_kernels.ops.launch.triton_table import ANY, SINCE, TABLE
from tools.ahead_of_time import (
    ARCHITECTURES,
    absorbed_attention,
    attention,
    compile_launch,
    float32_products,
    gelu,
    launches,
    norm,
    shared_memory_of,
)

FILE = Path(launching.__file__).with_name("triton_table.py")
Key = tuple[int, int, int, int]
Options = dict[str, int]
Table = dict[str, dict[Key, Options]]


def options(names: str, *values: tuple[int, ...]) -> list[Options]:
    return [dict(zip(names.split(), value, strict=True)) for value in values]


TIME = "ROWS num_warps num_stages"
FLASH = "BLOCK_M BLOCK_N num_warps num_stages"
ROWS = "BLOCK num_warps num_stages"
# Best guess first, by the bytes of an element; before all of them comes what the table has.
FEW = options(TIME, (16, 2, 1), (16, 1, 1), (16, 4, 1), (32, 4, 1), (64, 4, 1))  # frames
SHORT = {
    2: options(TIME, (64, 4, 1), (32, 4, 1), (64, 8, 1), (32, 8, 1)),  # Triton 3.2 crashes at (64, 8, 1) for width 128
    4: options(TIME, (32, 4, 1), (32, 8, 1), (32, 16, 1), (16, 4, 1), (16, 8, 1)),
}
LONG = {
    2: options(TIME, (128, 8, 1), (128, 4, 1), (128, 16, 1)),
    4: options(TIME, (64, 8, 1), (64, 16, 1), (64, 4, 1)),
}
FORWARD = {
    2: options(
        FLASH,
        (64, 64, 4, 3),
        (128, 64, 8, 3),
        (128, 64, 8, 2),
        (64, 64, 4, 2),
        (64, 32, 4, 3),
        (64, 32, 4, 2),
        (32, 32, 4, 2),
    ),
    4: options(FLASH, (32, 32, 4, 2), (32, 32, 8, 2), (32, 32, 8, 1), (16, 32, 4, 1), (16, 16, 4, 1), (16, 32, 8, 1)),
}
BACKWARD = {
    2: options(
        FLASH,
        (64, 64, 4, 2),
        (64, 64, 4, 3),
        (128, 64, 8, 3),
        (128, 32, 8, 3),
        (64, 32, 4, 3),
        (64, 64, 8, 2),
        (64, 32, 4, 2),
        (64, 32, 8, 2),
        (32, 32, 4, 2),
        (32, 32, 4, 1),
    ),
    4: options(
        FLASH,
        (32, 32, 4, 2),
        (32, 32, 8, 2),
        (32, 32, 8, 1),
        (32, 16, 4, 2),
        (32, 16, 8, 1),
        (32, 16, 4, 1),
        (32, 16, 16, 1),
        (16, 16, 4, 1),
        (16, 16, 8, 1),
    ),
}
# Of short groups, whose queries are best all tail where full tiles would leave two tails.
ALL_TAIL = options(
    "BLOCK_M TAIL_M BLOCK_N num_warps num_stages",
    (0, 64, 32, 4, 3), (0, 64, 32, 4, 2), (0, 64, 32, 8, 3), (0, 128, 64, 8, 3), (0, 128, 32, 8, 3),
)  # fmt: skip
# Of heads wider than 128 elements.
WIDE_FORWARD = {
    2: options(FLASH, (64, 64, 8, 2), (64, 32, 8, 2)),
    4: options(FLASH, (32, 16, 8, 1), (32, 16, 16, 1), (16, 16, 4, 1), (16, 16, 8, 1)),
}
WIDE_BACKWARD = {
    2: options(FLASH, (64, 64, 8, 2), (64, 32, 8, 2), (64, 32, 8, 1), (32, 32, 8, 2)),
    4: options(FLASH, (32, 16, 8, 1), (32, 16, 16, 1), (16, 16, 4, 1), (16, 16, 8, 1)),
}
# Of groups that a program holds whole, by their rows: by wgmma alone, elsewhere the two kernels are predicted faster.
ONLY = {"group_backward": (90,)}
GROUP = "ROWS BLOCK_N num_warps num_stages"
WHOLE = {
    64: options(GROUP, (64, 32, 4, 3), (64, 16, 4, 3), (64, 32, 4, 2)),
    128: options(GROUP, (128, 32, 4, 3), (128, 32, 8, 3), (128, 32, 4, 2)),
    256: options(GROUP, (256, 32, 8, 3), (256, 16, 8, 3), (256, 32, 8, 2)),
}
ABSORBED = {
    2: options(ROWS, (16, 16, 3), (16, 8, 3), (16, 8, 2), (16, 16, 2), (16, 8, 1), (16, 16, 1), (16, 4, 1))
    + options("BLOCK SPLIT_A num_warps num_stages", (16, 4, 8, 2), (16, 4, 8, 1)),
    4: options(ROWS, (1, 8, 4), (1, 8, 3), (1, 8, 2), (1, 16, 4), (1, 4, 4)),
}
COLUMNS = dict.fromkeys(
    (2, 4),
    options(
        "BLOCK CHUNK num_warps num_stages",
        (32, 64, 4, 2), (32, 64, 8, 2), (32, 64, 4, 1), (16, 64, 4, 1), (32, 32, 8, 1),
    ),
)  # fmt: skip
NORM = dict.fromkeys((2, 4), options(ROWS, (4, 4, 1), (2, 4, 1), (1, 4, 1), (1, 8, 1)))

GELU = dict.fromkeys((2, 4), options(ROWS, (4, 4, 1), (8, 4, 1), (2, 4, 1), (4, 8, 1), (1, 4, 1)))
DTYPES = {2: ("bfloat16",), 4: ("float32", "tf32")}  # float16 takes what bfloat16 takes


def norm_backward(width: int) -> dict[int, list[Options]]:
    """Tiles of 4,096 columns, of which three of four chunks of a row are used or all of two or four; or of half as
    many."""
    power = launching.power_of_2(width)
    three = width < power
    chunks, tiles = (4,) if three else (2, 4), {2: (4096, 4 if three else 8), 4: (4096, 8)}
    return {
        size: [
            {"BLOCK": max(columns // power, 1), "CHUNK": power // count, "num_warps": warps, "num_stages": stages}
            for count in chunks
            for columns, warps in (tile, (2048, 4))
            for stages in (3, 2)
        ]
        for size, tile in tiles.items()
    }


def both(first: Callable, second: Callable) -> Callable:
    return lambda *arguments: (first(*arguments), second(*arguments))


def problems() -> Iterator[tuple[str, int, int, dict[int, list[Options]], Callable]]:
    """(kernel, widest row, longest sequence, candidates, a case to compile and measure) for each row of the table."""
    for width in (32, 64, 128, 256):
        for kernel in ("time_forward", "time_backward"):
            yield kernel, width, 32, SHORT, attention("time", 8, 196, 1, width, 64)
            yield kernel, width, 128, LONG, attention("time", 60, 49, 1, width, 64)
        if width <= 128:
            few = attention("time", 3, 196, 1, width, 64)
            yield "time_backward", width, 8, {2: FEW}, few
            yield "time_forward", width, 4, {2 if width > 32 else 4: FEW}, few  # else there is enough to do in 32 rows
        space, joint = attention("space", 8, 196, 1, width, 16), attention("joint", 3, 196, 1, width, 16)
        short = both(space, attention("space", 8, 60, 1, width, 16))  # its tails are longer
        forward, backward = (FORWARD, BACKWARD) if width <= 128 else (WIDE_FORWARD, WIDE_BACKWARD)
        for kernel, candidates in (
            ("flash_forward", forward), ("flash_backward_q", backward), ("flash_backward_kv", backward),
        ):  # fmt: skip
            yield kernel, width, 400, candidates, short
            yield kernel, width, ANY, candidates, joint
    for kernel, candidates, lengths in (
        ("flash_forward", FORWARD, ((31, 25), (63, 49), (95, 72), (127, 100), (160, 144), (256, 196))),
        ("flash_backward_q", BACKWARD, ((31, 25), (63, 49), (95, 72), (127, 100))),
        ("flash_backward_kv", BACKWARD, ((31, 25), (63, 49), (95, 72), (127, 100))),
    ):
        yield kernel, 32, 127, {2: ALL_TAIL + candidates[2]}, attention("space", 8, 49, 1, 32, 16)
        for length, patches in lengths:
            yield kernel, 64, length, {2: ALL_TAIL + candidates[2]}, attention("space", 8, patches, 1, 64, 16)
    for length, patches in ((64, 49), (128, 100), (256, 196)):
        yield "group_backward", 64, length, {2: WHOLE[length]}, attention("space", 8, patches, 1, 64, 16)
    for width in (256, 512, 640, 768, 1024):  # up to 640 the narrower piece has half the columns of 768's
        for kernel in ("absorbed_forward", "absorbed_backward"):
            yield kernel, width, ANY, ABSORBED, absorbed_attention(588, width)
    for kernel in ("row_scores", "absorbed_columns", "row_gradients", "absorbed_columns_backward"):
        yield kernel, ANY, ANY, COLUMNS, absorbed_attention(588, 1536)
    for width, real in ((512, 384), (1024, 768), (4096, 3072)):
        yield "add_layer_norm_forward", width, ANY, NORM, norm(37696, real)
    for width in (192, 384, 768, 1024, 1536, 2048, 3072, 4096):
        yield "add_layer_norm_backward", width, ANY, norm_backward(width), norm(37696, width)
    for kernel in ("bias_gelu_forward", "bias_gelu_backward"):
        yield kernel, ANY, ANY, GELU, gelu(37696, 3072, 0.1)


def key_of(arch: int, size: int, width: int, longest: int, config: Options) -> Key:
    """A tile over time holds no more than its rows."""
    return arch, size, width, min(longest, config.get("ROWS", longest))


@contextmanager
def only(kernel: str, key: Key, config: Options) -> Iterator[None]:
    """A table in which `kernel` has this configuration, and every other kernel some configuration."""
    arch, size = key[:2]
    table: dict[str, dict[Key, Options]] = {}
    for name, width, longest, candidates, _ in problems():
        table.setdefault(name, {})
        if name in ONLY and name != kernel:  # it would take the place of the kernels that do without it
            continue
        for first in candidates.get(size, [])[:1]:
            table[name][key_of(arch, size, width, longest, first)] = first
    table[kernel] = {key: config}
    with mock.patch.object(launching, "table", lambda installed: table):
        launching._row.cache_clear()
        yield
    launching._row.cache_clear()


def spills(kernel: str, key: Key, config: Options, case: Callable) -> float:
    """Spilling instructions of the kernel, in the worst dtype of its size; infinite where it does not fit the GPU."""
    arch, size = key[:2]
    most = 0.0
    for dtype in DTYPES[size]:
        with float32_products(dtype) as torch_dtype, only(kernel, key, config):
            noted = launches(lambda dtype=torch_dtype: case(dtype), arch)
        for launch in noted:
            if launch.name == kernel:
                resources = compile_launch(launch, arch)
                most = max(most, resources.spills)
                if resources.shared_memory > shared_memory_of(arch):
                    return math.inf
    return most


def milliseconds(kernel: str, key: Key, config: Options, case: Callable) -> float:
    """Median time of the kernel's launches in the case, with cold caches, in the first dtype of its size."""
    arch, size = key[:2]
    with only(kernel, key, config):
        noted = launches(lambda: case(getattr(torch, DTYPES[size][0]), "cuda"), arch)
    launch = next(launch for launch in noted if launch.name == kernel)
    call = launch.kernel[(launch.programs,)]
    return triton.testing.do_bench(lambda: call(*launch.arguments, **launch.options), return_mode="median")


@dataclass(frozen=True)
class Row:
    """A row of the table to be decided, as its place in `problems`, which a process of its own can be told."""

    problem: int
    arch: int
    size: int

    @property
    def kernel(self) -> str:
        return _problems()[self.problem][0]

    @property
    def case(self) -> Callable:
        return _problems()[self.problem][4]

    @property
    def candidates(self) -> list[tuple[Key, Options]]:
        """What the table has comes first: without a GPU it stays, unless it spills."""
        _, width, longest, candidates, _ = _problems()[self.problem]
        keyed = [(key_of(self.arch, self.size, width, longest, config), config) for config in candidates[self.size]]
        present = launching.table(launching.version()).get(self.kernel, {})
        own = [(key, present[key]) for key in dict.fromkeys(key for key, _ in keyed) if key in present]
        return own + [candidate for candidate in keyed if candidate not in own]

    def __str__(self) -> str:
        _, width, longest, *_ = _problems()[self.problem]
        return f"{self.kernel} sm_{self.arch} {self.size} bytes, width {width}, length {longest}"


@functools.cache
def _problems() -> list[tuple[str, int, int, dict[int, list[Options]], Callable]]:
    return list(problems())


def rows(architectures: Sequence[int], only: str) -> list[Row]:
    """Those of kernels whose name contains `only`, half types first."""
    found = []
    for size, arch, (index, (kernel, _, _, candidates, _)) in itertools.product(
        (2, 4), architectures, enumerate(_problems())
    ):
        if only in kernel and size in candidates and arch in ONLY.get(kernel, (arch,)):
            found.append(Row(index, arch, size))
    return found


def fitting(row: Row, first: bool) -> list[tuple[Key, Options]]:
    """The candidates that spill least, or the `first` of them that spills nothing; none where none fits.

    A tile over time that spills is none either: flash attention takes such sequences, and in two kernels such groups.
    Nor is a block of whole rows for crossmodal attention: wider rows are taken in chunks of columns.
    """
    spilling: list[tuple[float, Key, Options]] = []
    for key, config in row.candidates:
        spilling.append((spills(row.kernel, key, config, row.case), key, config))
        if first and spilling[-1][0] == 0:
            break
    least = min(entry[0] for entry in spilling)
    others = ("time_forward", "time_backward", "group_backward", "absorbed_forward", "absorbed_backward")
    if row.kernel in others and least > 0:
        return []
    return [entry[1:] for entry in spilling if entry[0] == least < math.inf]


def fastest(row: Row, good: list[tuple[Key, Options]]) -> tuple[Key, Options]:
    """Of the candidates that fit.

    Raises:
        RuntimeError: none of them runs.
    """
    timed: list[tuple[float, Key, Options]] = []
    for key, config in good:
        try:
            time_taken = milliseconds(row.kernel, key, config, row.case)
        except Exception as error:
            print(f"    does not run: {type(error).__name__}: {error}  {config}", flush=True)
            continue
        print(f"    {time_taken:8.4f} ms  {config}", flush=True)
        timed.append((time_taken, key, config))
    if not timed:
        raise RuntimeError("no candidate runs")
    return min(timed, key=lambda entry: entry[0])[1:]


def differences(before: Table, after: Table) -> Table:
    """The rows of `after` that are not in `before`; {} for those that it lacks."""
    found: Table = {}
    for kernel in after:
        keys = {*before[kernel], *after[kernel]}
        rows = {key: after[kernel].get(key, {}) for key in keys if before[kernel].get(key) != after[kernel].get(key)}
        found |= {kernel: rows} if rows else {}
    return found


def _written(key: Key) -> str:
    return f"({', '.join('ANY' if number == ANY else str(number) for number in key)})"


def lines_of(table: Table, indent: str) -> list[str]:
    lines = []
    for kernel in sorted(table):
        rows = [f"{indent}    {_written(key)}: {json.dumps(config)}," for key, config in sorted(table[kernel].items())]
        lines += [f'{indent}"{kernel}": {{', *rows, f"{indent}}},"] if rows else [f'{indent}"{kernel}": {{}},']
    return lines


def write(table: Table, path: Path) -> None:
    """The configurations for the installed version of Triton, beside those of older and newer ones."""
    installed = launching.version()
    older = launching.table(max((release for release in SINCE if release < installed), default=(0, 0)))
    since = {**SINCE, installed: differences(older, table)}
    lines = [
        '"""Launch configurations of the Triton kernels, written by `python -m tools.tune`."""',
        "",
        "ANY = 1 << 30  # wider than any row, longer than any sequence",
        "",
        "# kernel: {(architecture, bytes an element, widest row, longest sequence): options}",
        "TABLE: dict[str, dict[tuple[int, int, int, int], dict[str, int]]] = {",
        *lines_of(TABLE, "    "),
        "}",
        "",
        "# What Triton takes instead from a version on; {} where it has no configuration.",
        "SINCE: dict[tuple[int, int], dict[str, dict[tuple[int, int, int, int], dict[str, int]]]] = {",
    ]
    for release in sorted(release for release in since if since[release]):
        lines += [f"    {release}: {{", *lines_of(since[release], "        "), "    },"]
    path.write_text("\n".join([*lines, "}", ""]))


def merged(before: Table, all_rows: list[Row], decided: dict[Row, tuple[Key, Options] | None]) -> Table:
    """The table with what was decided, and as it was `before` where nothing was."""
    table: Table = {kernel: {} for kernel in before}
    asked = {(row.kernel, row.arch) for row in all_rows}
    waiting = {(row.kernel, key) for row in all_rows if row not in decided for key, _ in row.candidates}
    for kernel, entries in before.items():
        for key, config in entries.items():
            if (kernel, key[0]) not in asked or (kernel, key) in waiting:
                table[kernel][key] = config
    for row, found in decided.items():
        if found:
            table.setdefault(row.kernel, {})[found[0]] = found[1]
    # Crossmodal attention takes whole rows where its backward pass can.
    backward = {key[:3] for key in table["absorbed_backward"]}
    whole = {key: config for key, config in table["absorbed_forward"].items() if key[:3] in backward}
    return table | {"absorbed_forward": whole}


def compiled(all_rows: list[Row], first: bool, jobs: int, seconds: float | None) -> Iterator[list[tuple[Key, Options]]]:
    """What `fitting` says of the rows, in their order; ends early when the seconds are over."""
    if jobs == 1:
        end = math.inf if seconds is None else time.monotonic() + seconds
        for row in all_rows:
            if time.monotonic() >= end:
                return
            yield fitting(row, first)
        return
    with futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(fitting, all_rows, itertools.repeat(first), timeout=seconds)
        except futures.TimeoutError:
            return
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--compile-only", action="store_true", help="choose without a GPU, by what compiles well")
    made.add_argument("--only", default="", help="only kernels whose name contains this")
    made.add_argument("--jobs", type=int, default=1, help="in how many processes to compile")
    made.add_argument("--minutes", type=float, help="what is not reached by then stays as it was; without, all is")
    made.add_argument("--folder", type=Path, help="write here, named after Triton's version, and leave the library's")
    return made


def main() -> int:
    arguments = parser().parse_args()
    measure = not arguments.compile_only
    architectures = (launching.architecture(torch.device("cuda")),) if measure else ARCHITECTURES
    path = arguments.folder / f"triton_table-{triton.__version__}.py" if arguments.folder else FILE
    seconds = None if arguments.minutes is None else 60 * arguments.minutes
    end = math.inf if seconds is None else time.monotonic() + seconds
    all_rows = rows(architectures, arguments.only)
    before, decided = launching.table(launching.version()), {}
    after = before
    for row, good in zip(all_rows, compiled(all_rows, not measure, arguments.jobs, seconds), strict=False):
        if time.monotonic() >= end:
            break
        try:
            decided[row] = fastest(row, good) if measure and good else (good[0] if good else None)
        except RuntimeError as error:
            print(f"{row}: {error}", flush=True)
            continue
        print(f"{row}: {decided[row] and decided[row][1]}", flush=True)
        after = merged(before, all_rows, decided)
        write(after, path)
    for kernel in sorted(after):
        for key in sorted({*before.get(kernel, {}), *after[kernel]}):
            old, new = before.get(kernel, {}).get(key), after[kernel].get(key)
            if old != new:
                print(f"changed: {kernel} {key}: {old} -> {new}")
    undecided = [row for row in all_rows if row not in decided]
    for row in undecided:
        print(f"as it was: {row}")
    return 1 if undecided else 0


if __name__ == "__main__":
    raise SystemExit(main())

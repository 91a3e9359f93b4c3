"""Chooses the launch configurations of the Triton kernels and rewrites hsta_kernels/ops/launch/triton_table.py.

    python -m tools.tune                  # on a GPU: its architecture's rows, by measured time
    python -m tools.tune --compile-only   # anywhere: all rows, the first candidate that compiles without spilling

A candidate that wants more shared memory than the architecture has, or spills registers where another does not, is
never measured. What differs from the rows of older versions of Triton is written for the installed one and later ones:
the compilers differ in what they hold in registers. What changed against the table as it was is printed at the end.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import triton

from hsta_kernels.ops.launch import triton as launching
from hsta_kernels.ops.launch.triton_table import SINCE, TABLE
from tools.ahead_of_time import (
    ARCHITECTURES,
    SHARED_MEMORY,
    absorbed_attention,
    attention,
    compile_launch,
    float32_products,
    gelu,
    launches,
    norm,
)

ANY = 1 << 30  # longer than any sequence
FILE = Path(launching.__file__).with_name("triton_table.py")
Key = tuple[int, int, int, int]
Options = dict[str, int]


def options(names: str, *values: tuple[int, ...]) -> list[Options]:
    return [dict(zip(names.split(), value, strict=True)) for value in values]


TIME = "ROWS num_warps num_stages"
FLASH = "BLOCK_M BLOCK_N num_warps num_stages"
ROWS = "BLOCK num_warps num_stages"
# Best guess first, by the bytes of an element.
SHORT = {
    2: options(TIME, (64, 4, 1), (32, 4, 1), (64, 8, 1), (32, 8, 1)),  # Triton 3.2 crashes at (64, 8, 1) for width 128
    4: options(TIME, (32, 4, 1), (32, 8, 1), (32, 16, 1), (16, 4, 1)),
}
LONG = {
    2: options(TIME, (128, 8, 1), (128, 4, 1), (128, 16, 1)),
    4: options(TIME, (64, 8, 1), (64, 16, 1), (64, 4, 1)),
}
FORWARD = {
    2: options(FLASH, (64, 64, 4, 3), (128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2)),
    4: options(FLASH, (32, 32, 4, 2), (32, 32, 8, 2), (32, 32, 8, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
}
BACKWARD = {
    2: options(FLASH, (64, 64, 4, 2), (64, 64, 8, 2), (64, 32, 4, 2), (64, 32, 8, 2), (32, 32, 4, 2), (32, 32, 4, 1)),
    4: options(
        FLASH,
        (32, 32, 4, 2),
        (32, 32, 8, 2),
        (32, 32, 8, 1),
        (32, 16, 4, 2),
        (32, 16, 8, 1),
        (32, 16, 4, 1),
        (16, 16, 4, 1),
    ),
}
ABSORBED = {
    2: options(ROWS, (16, 8, 3), (16, 8, 2), (16, 16, 2), (16, 8, 1), (16, 16, 1), (16, 4, 1))
    + options("BLOCK SPLIT_A num_warps num_stages", (16, 4, 8, 1)),
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


def both(first: Callable, second: Callable) -> Callable:
    return lambda *arguments: (first(*arguments), second(*arguments))


def problems() -> Iterator[tuple[str, int, int, dict[int, list[Options]], Callable]]:
    """(kernel, widest row, longest sequence, candidates, a case to compile and measure) for each row of the table."""
    for width in (32, 64, 128):
        for kernel in ("time_forward", "time_backward"):
            yield kernel, width, 32, SHORT, attention("time", 8, 196, 1, width, 64)
            yield kernel, width, 128, LONG, attention("time", 60, 49, 1, width, 64)
        space, joint = attention("space", 8, 196, 1, width, 16), attention("joint", 3, 196, 1, width, 16)
        short = both(space, attention("space", 8, 60, 1, width, 16))  # its tails are longer
        for kernel, candidates in (
            ("flash_forward", FORWARD), ("flash_backward_q", BACKWARD), ("flash_backward_kv", BACKWARD),
        ):  # fmt: skip
            yield kernel, width, 400, candidates, short
            yield kernel, width, ANY, candidates, joint
    for width in (256, 512, 768, 1024):
        for kernel in ("absorbed_forward", "absorbed_backward"):
            yield kernel, width, ANY, ABSORBED, absorbed_attention(588, width)
    for kernel in ("row_scores", "absorbed_columns", "row_gradients", "absorbed_columns_backward"):
        yield kernel, ANY, ANY, COLUMNS, absorbed_attention(588, 1536)
    for width, real in ((512, 384), (1024, 768), (4096, 3072)):
        for kernel in ("add_layer_norm_forward", "add_layer_norm_backward"):
            yield kernel, width, ANY, NORM, norm(37696, real)
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
                if resources.shared_memory > SHARED_MEMORY[arch]:
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


def choose(
    kernel: str,
    arch: int,
    size: int,
    width: int,
    longest: int,
    candidates: list[Options],
    case: Callable,
    measure: bool,
) -> tuple[Key, Options] | None:
    """The fastest configuration among those that spill least; without measuring, the first; None when none fits.

    A tile over time that spills is none either: flash attention takes such sequences. Nor is a block of whole rows for
    crossmodal attention: wider rows are taken in chunks of columns.
    """
    spilling: list[tuple[float, Key, Options]] = []
    for config in candidates:
        key = key_of(arch, size, width, longest, config)
        spilling.append((spills(kernel, key, config, case), key, config))
        if not measure and spilling[-1][0] == 0:
            break
    least = min(entry[0] for entry in spilling)
    if kernel in ("time_forward", "time_backward", "absorbed_forward", "absorbed_backward") and least > 0:
        return None
    good = [entry[1:] for entry in spilling if entry[0] == least < math.inf]
    if not measure or not good:
        return good[0] if good else None
    timed = [(milliseconds(kernel, key, config, case), key, config) for key, config in good]
    for time, _, config in timed:
        print(f"    {time:8.4f} ms  {config}")
    return min(timed, key=lambda entry: entry[0])[1:]


def differences(before: dict[str, dict[Key, Options]], after: dict[str, dict[Key, Options]]) -> dict:
    """The rows of `after` that are not in `before`; {} for those that it lacks."""
    found = {}
    for kernel in after:
        keys = {*before[kernel], *after[kernel]}
        rows = {key: after[kernel].get(key, {}) for key in keys if before[kernel].get(key) != after[kernel].get(key)}
        found |= {kernel: rows} if rows else {}
    return found


def lines_of(table: dict[str, dict[Key, Options]], indent: str) -> list[str]:
    lines = []
    for kernel in sorted(table):
        rows = [f"{indent}    {key}: {json.dumps(config)}," for key, config in sorted(table[kernel].items())]
        lines += [f'{indent}"{kernel}": {{', *rows, f"{indent}}},"]
    return lines


def write(table: dict[str, dict[Key, Options]]) -> None:
    """The configurations for the installed version of Triton, beside those of older and newer ones."""
    installed = launching.version()
    older = launching.table(max((release for release in SINCE if release < installed), default=(0, 0)))
    since = {**SINCE, installed: differences(older, table)}
    lines = [
        '"""Launch configurations of the Triton kernels, written by `python -m tools.tune`."""',
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
    FILE.write_text("\n".join([*lines, "}", ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile-only", action="store_true", help="choose without a GPU, by what compiles well")
    parser.add_argument("--only", default="", help="only kernels whose name contains this")
    arguments = parser.parse_args()
    measure = not arguments.compile_only
    architectures = (launching.architecture(torch.device("cuda")),) if measure else ARCHITECTURES
    before = launching.table(launching.version())
    after = copy.deepcopy(before)
    for kernel in after:
        if arguments.only in kernel:
            after[kernel] = {key: config for key, config in after[kernel].items() if key[0] not in architectures}
    for (kernel, width, longest, candidates, case), arch, size in itertools.product(problems(), architectures, (2, 4)):
        if arguments.only in kernel and size in candidates:
            found = choose(kernel, arch, size, width, longest, candidates[size], case, measure)
            print(f"{kernel} sm_{arch} {size} bytes, width {width}, length {longest}: {found and found[1]}", flush=True)
            if found:
                after.setdefault(kernel, {})[found[0]] = found[1]
    # Crossmodal attention takes whole rows where its backward pass can.
    backward = {key[:3] for key in after["absorbed_backward"]}
    after["absorbed_forward"] = {
        key: config for key, config in after["absorbed_forward"].items() if key[:3] in backward
    }
    write(after)
    for kernel in sorted(after):
        for key in sorted({*before.get(kernel, {}), *after[kernel]}):
            old, new = before.get(kernel, {}).get(key), after[kernel].get(key)
            if old != new:
                print(f"changed: {kernel} {key}: {old} -> {new}")


if __name__ == "__main__":
    main()

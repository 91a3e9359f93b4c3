"""The CUDA kernels compiled for GPUs that are not here: registers, spills, matrix instructions, wide loads.

python -m tests.cuda.resources      # rewrites docs/cuda-resources.md
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch

from tests.cuda_on_host.compiling import emulated

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {path.stem: path for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))}
DOCUMENT = ROOT / "docs" / "cuda-resources.md"
ARCHITECTURES = ("80", "90a", "100")
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-Xptxas", "-v", "-cubin")  # what CMakeLists.txt compiles with
# Attention over time: (prefix, frames, patches, heads, head_dim); crossmodal: (tokens, heads, width).
TIME_CASES = ((1, 8, 196, 12, 32), (1, 8, 196, 12, 64), (1, 8, 196, 12, 128), (16, 64, 196, 12, 128))
CROSSMODAL_CASES = ((324, 12, 384), (588, 12, 768))


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes and uses; the fields are columns of the table in docs/."""

    source: str
    kernel: str
    arch: str
    registers: int
    stack: int  # bytes
    spills: int  # bytes
    matrix: int  # instructions of the matrix unit
    wide_loads: str  # 16-byte global loads, asynchronous copies included, out of all


def nvcc_version() -> str | None:
    if shutil.which("nvcc") is None:
        return None
    return re.findall(r"release ([\d.]+)", subprocess.check_output(["nvcc", "--version"], text=True))[0]


def compile_source(source: str, arch: str) -> list[Resources]:
    """Every kernel of a file of csrc/cuda/ for one architecture."""
    import triton  # its wheel brings the disassembler

    disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
        command = ["nvcc", *FLAGS, target, str(SOURCES[source]), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-5000:]
        code = subprocess.check_output([disassembler, "-sass", cubin], text=True)
    report = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        done.stdout + done.stderr,
        re.DOTALL,
    )
    bodies = dict(re.findall(r"Function : (\w+)\n(.*?)(?=Function : |\Z)", code, re.DOTALL))
    found = []
    for name, stack, stores, loads, registers in report:
        global_loads = re.findall(r"\b(?:LDG|LDGSTS)\.\S*", bodies[name])
        found.append(
            Resources(
                source,
                short_name(name),
                arch,
                int(registers),
                int(stack),
                int(stores) + int(loads),
                len(re.findall(r"\bHMMA", bodies[name])),
                f"{sum('.128' in load for load in global_loads)}/{len(global_loads)}",
            )
        )
    return sorted(found, key=lambda resources: resources.kernel)


def short_name(mangled: str) -> str:
    """The kernel's name with its template arguments."""
    full = subprocess.check_output(["c++filt", mangled], text=True)
    name = re.findall(r"(\w+_kernel<.*?>)\(", full)[0]
    return re.sub(r"hsta::(?:cuda::)?(?:_GLOBAL__N__\w+::|\(anonymous namespace\)::)?", "", name)


def line(resources: Resources) -> str:
    return f"| {' | '.join(map(str, astuple(resources)))} |"


def shared_memory_lines() -> list[str]:
    """Bytes of shared memory that a block of the backward passes takes; needs the kernels, for the GPU or emulated."""
    from hsta_kernels.ops import cuda

    lines = []
    for dtype in (torch.bfloat16, torch.float32):
        for case in TIME_CASES:
            size = cuda.module().space_time_attention_shared_memory(cuda.DTYPES[dtype], (1, *case))
            words = "time, P={} T={} N={} H={} D={}".format(*case)
            lines.append(f"| {words} | {dtype} | {size} |")
        for case in CROSSMODAL_CASES:
            size = cuda.module().cross_modal_attention_shared_memory(cuda.DTYPES[dtype], (1, *case))
            words = "crossmodal, N={} H={} C={}".format(*case)
            lines.append(f"| {words} | {dtype} | {size} |")
    return lines


def main() -> None:
    with ThreadPoolExecutor(2) as pool:
        jobs = [(source, arch) for arch in ARCHITECTURES for source in SOURCES]
        rows = [line(found) for kernels in pool.map(lambda job: compile_source(*job), jobs) for found in kernels]
    code = (
        "import tests.cuda_on_host.conftest\n"
        "from tests.cuda.resources import shared_memory_lines\n"
        "print('\\n'.join(shared_memory_lines()))"
    )
    shared = emulated(["-c", code])
    assert shared.returncode == 0, shared.stderr
    columns = [field.name.replace("_", " ") for field in fields(Resources)]
    lines = [
        "# What the CUDA kernels take of a GPU",
        "",
        f"Compiled ahead of time by nvcc {nvcc_version()}; written by `python -m tests.cuda.resources`, and compared",
        "with the kernels by `tests/cuda/test_resources.py`. Stack and spills are in bytes; the matrix unit's",
        "instructions and the 16-byte share of the global loads, asynchronous copies included, are read from the",
        "machine code.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *rows,
        "",
        "Shared memory is asked for at launch. A block of the backward passes takes, in bytes:",
        "",
        "| case | dtype | shared memory |",
        "|---|---|---|",
        *shared.stdout.strip().splitlines(),
    ]
    DOCUMENT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

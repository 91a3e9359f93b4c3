"""Triton kernels without a GPU: what the operators would launch, compiled for a GPU that need not be there.

    python -m tools.ahead_of_time --jobs 2      # rewrites docs/triton-resources.md
    python -m tools.ahead_of_time --changed     # compiles only what has changed since then
    python -m tools.ahead_of_time --check 90    # writes nothing; fails where a kernel spills, or takes too much memory

`launches` runs an operator's own launch code on tensors without data and notes each kernel call; `compile_launch` is
Triton's just-in-time compilation of such a call for a chosen architecture, so that what is looked at is what will run.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import itertools
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from hsta_kernels.ops.add_layer_norm import triton as add_layer_norm
from hsta_kernels.ops.bias_gelu import triton as bias_gelu
from hsta_kernels.ops.cross_modal_attention import triton as cross_modal_attention
from hsta_kernels.ops.launch import triton as launching
from hsta_kernels.ops.space_time_attention import triton as space_time_attention
from hsta_kernels.ops.space_time_attention.grid import Grid
from hsta_kernels.ops.space_time_attention.operands import Operands

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "triton-resources.md"
Target = int | str  # an NVIDIA GPU, such as 90, or an AMD one, such as "gfx942"
ARCHITECTURES = (80, 89, 90, 100, 120)
AMD = ("gfx942", "gfx950")
DTYPES = ("bfloat16", "float16", "float32", "tf32")
RELATIVES = (89, 120, *AMD)  # of data-centre GPUs, in whose dtypes and sizes not all is compiled
# What a program may take. An A100 has 163 KiB; rows of 80 also serve other vendors' GPUs.
SHARED_MEMORY: dict[Target, int] = {
    80: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10, "gfx942": 64 << 10, "gfx950": 160 << 10,
}  # fmt: skip
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Launch:
    kernel: JITFunction
    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    @property
    def operator(self) -> str:
        return self.kernel.fn.__module__.split(".")[-2]

    @property
    def constants(self) -> tuple:
        """What the kernel is compiled for, but for which sizes are multiples of 16."""
        dtypes = tuple(a.dtype for a in self.arguments if isinstance(a, torch.Tensor))
        return self.name, dtypes, tuple(item for item in self.options.items() if item[0] != "launch_pdl")

    @property
    def dependent(self) -> bool:
        """Whether its programs are placed before the kernel in front of it is done."""
        return self.options.get("launch_pdl", False)


@dataclass(frozen=True)
class Resources:
    """What a kernel compiled for an NVIDIA GPU takes and uses; the fields are the columns of the table in docs/."""

    registers: int
    shared_memory: int
    spills: int  # instructions that touch local memory
    matrix: str  # the matrix unit's instructions in the machine code
    wide_loads: str  # 16-byte global loads out of all


@dataclass(frozen=True)
class AmdResources:
    """The same for an AMD GPU; registers and spills as the ELF's metadata state them."""

    vector_registers: int  # accumulators among them
    accumulators: int
    scalar_registers: int
    shared_memory: int
    spills: int  # vector registers, to memory
    scalar_spills: int  # to lanes of vector registers
    matrix: str
    wide_loads: str


def shared_memory_of(target: Target) -> int:
    """What a program may take; of a GPU that is not in the table, what its relatives have."""
    return SHARED_MEMORY.get(target, SHARED_MEMORY[rows_for(target)])


def rows_for(target: Target) -> int:
    """The architecture whose configurations a GPU takes."""
    return launching.generation(*divmod(target, 10)) if isinstance(target, int) else 80


def launches(run: Callable[[], object], target: Target) -> list[Launch]:
    """The kernels that `run` would launch on such a GPU; its tensors are on the meta device."""
    noted: list[Launch] = []
    rows = rows_for(target)

    def note(kernel: JITFunction, grid: tuple[int, ...]) -> Callable[..., None]:
        (programs,) = grid  # on x: y and z end at 65,535
        return lambda *arguments, **options: noted.append(Launch(kernel, programs, arguments, options))

    with (
        mock.patch.object(JITFunction, "__getitem__", note),
        mock.patch.object(launching, "architecture", lambda device: rows),
        mock.patch.object(torch.Tensor, "data_ptr", lambda tensor: 0),
    ):
        run()
    return noted


@contextmanager
def _active(target: Target) -> Iterator[None]:
    before = dict(vars(driver))
    fake = mock.Mock()
    nvidia = isinstance(target, int)
    fake.get_current_target.return_value = GPUTarget("cuda" if nvidia else "hip", target, 32 if nvidia else 64)
    fake.get_current_device.return_value = target  # kernels are cached by device
    driver.set_active(fake)
    try:
        yield
    finally:
        vars(driver).update(before)


def compile_for(launch: Launch, target: Target) -> CompiledKernel:
    arguments = [a.dtype if isinstance(a, torch.Tensor) else a for a in launch.arguments]
    with _active(target):
        return launch.kernel.warmup(*arguments, grid=(launch.programs,), **launch.options)


def compile_launch(launch: Launch, target: Target) -> Resources | AmdResources:
    compiled = compile_for(launch, target)
    if isinstance(target, str):
        return _amd_resources(compiled.asm["amdgcn"], compiled.metadata.shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [_CUOBJDUMP, "--dump-resource-usage", "-sass", cubin.name]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loads = re.findall(r"\b(?:LDG|LDGSTS)\.\S*", code)
    kinds = ((r"\bHMMA", "mma"), (r"\bHGMMA", "wgmma"), (r"\bUTC\w*MMA", "tcgen05"))
    return Resources(
        registers=int(re.findall(r"REG:(\d+)", code)[-1]),
        shared_memory=compiled.metadata.shared,
        spills=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        matrix="+".join(name for pattern, name in kinds if re.search(pattern, code)) or "none",
        wide_loads=f"{sum('.128' in load for load in loads)}/{len(loads)}",
    )


def _amd_resources(code: str, shared_memory: int) -> AmdResources:
    """From the assembly, which has the metadata that the ELF gets; shared memory is asked for at the launch."""

    def stated(name: str) -> int:
        return int(re.findall(rf"^ +(?:- )?\.{name}: +(\d+)$", code, re.MULTILINE)[-1])

    loads = re.findall(r"\b(?:global|buffer)_load_\S+", code)
    return AmdResources(
        vector_registers=stated("vgpr_count"),
        accumulators=stated("agpr_count"),
        scalar_registers=stated("sgpr_count"),
        shared_memory=stated("group_segment_fixed_size") + shared_memory,
        spills=stated("vgpr_spill_count"),
        scalar_spills=stated("sgpr_spill_count"),
        matrix="mfma" if "v_mfma" in code else "none",
        wide_loads=f"{sum('x4' in load for load in loads)}/{len(loads)}",
    )


def attention(
    axis: str, frames: int, patches: int, num_prefix_tokens: int, head_dim: int, batch: int = 8, packed: bool = True,
    dropout_rate: float = 0.0, **choices: str,
) -> Callable:  # fmt: skip
    """Forward and backward pass of space_time_attention, to be given a dtype; not packed, q, k and v are (B, H, L, D)
    in memory. `choices` are those of `Grid`."""

    def run(dtype: torch.dtype, device: str = "meta") -> None:
        grid = Grid(frames, patches, axis, num_prefix_tokens, head_dim**-0.5, dropout_rate=dropout_rate, **choices)
        length = num_prefix_tokens + frames * patches
        shapes = [(batch, length, 3, 12, head_dim)] if packed else [(batch, 12, length, head_dim)] * 3
        qkv = [torch.randn(shape, dtype=dtype, device=device) for shape in shapes]
        if not packed:
            qkv = [part.transpose(1, 2) for part in qkv]
        seed = torch.zeros(1, dtype=torch.int64, device=device) if dropout_rate else None
        table, affine = torch.randn(length, head_dim, device=device), torch.randn(2, 2, head_dim, device=device)
        operands = Operands(seed, (table, table) if grid.rotary_pairs else None, affine if grid.qk_norm else None)
        out, stats = space_time_attention.forward(qkv, grid, operands)
        space_time_attention.backward(out, qkv, out, stats, grid, operands)

    return run


def absorbed_attention(
    tokens: int, width: int, heads: int = 12, batch: int = 64, dropout_rate: float = 0.0
) -> Callable:
    """Forward and backward pass of absorbed attention, over a slice of a longer sequence."""

    def run(dtype: torch.dtype, device: str = "meta") -> None:
        rows = torch.randn(batch, 1 + tokens, width, dtype=dtype, device=device)[:, 1:]
        query = torch.randn(batch, width, dtype=dtype, device=device)
        u = torch.randn(batch, heads, width, device=device)
        seed = torch.zeros(1, dtype=torch.int64, device=device) if dropout_rate else None
        z, stats = cross_modal_attention.forward(u, query, rows, 1e-6, dropout_rate, seed)
        cross_modal_attention.backward(z, u, query, rows, z, stats, 1e-6, dropout_rate, seed)

    return run


def crossmodal(tokens: int, width: int, heads: int = 12, batch: int = 64) -> Callable:
    """Forward and backward pass of the whole operator, over a slice of a longer sequence."""

    def run(dtype: torch.dtype, device: str = "meta") -> None:
        rows = torch.randn(batch, 1 + tokens, width, dtype=dtype, device=device)[:, 1:]
        query = torch.randn(batch, width, dtype=dtype, device=device)
        matrix, vector = (torch.randn(shape, dtype=dtype, device=device) for shape in ((width, width), (width,)))
        tensors = (query, rows, vector, vector, matrix, vector, matrix, matrix)
        out, *saved = cross_modal_attention.cross_modal_attention(*tensors, vector, heads, 1e-6)
        cross_modal_attention.cross_modal_attention_backward(out, *tensors, *saved, 1e-6)

    return run


def norm(rows: int, width: int) -> Callable:
    """Forward and backward pass of add_layer_norm."""

    def run(dtype: torch.dtype, device: str = "meta") -> None:
        x, weight = torch.randn(rows, width, dtype=dtype, device=device), torch.randn(width, device=device)
        add_layer_norm.forward(x, x, weight, weight, 1e-6, dtype)
        add_layer_norm.backward(x, x, x, weight, weight, 1e-6, False)

    return run


def gelu(rows: int, width: int, dropout_rate: float) -> Callable:
    """Forward and backward pass of bias_gelu."""

    def run(dtype: torch.dtype, device: str = "meta") -> None:
        x, bias = torch.randn(rows, width, dtype=dtype, device=device), torch.randn(width, device=device)
        seed = torch.zeros(1, dtype=torch.int64, device=device) if dropout_rate else None
        bias_gelu.forward(x, bias, dropout_rate, seed)
        bias_gelu.backward(x, x, bias, dropout_rate, seed)

    return run


# One case or more for each configuration in the table, the model's sizes first.
CASES: dict[str, Callable] = {
    **{f"time T=8 D={d}": attention("time", 8, 196, 1, d) for d in (64, 32, 128)},
    **{f"space N=196 D={d}": attention("space", 8, 196, 1, d) for d in (64, 32, 128)},
    **{f"space N={n} D=64": attention("space", 8, n, 1, 64) for n in (320, 68, 4)},  # with 196's tails
    **{f"space N=49 D={d}": attention("space", 8, 49, 1, d) for d in (64, 32)},
    **{f"joint N=588 D={d}": attention("joint", 3, 196, 1, d) for d in (64, 32)},
    **{f"time T=3 D={d}": attention("time", 3, 196, 1, d) for d in (64, 32, 128)},
    **{f"time T=60 D={d}": attention("time", 60, 49, 1, d) for d in (64, 32, 128)},
    "time T=16 D=160": attention("time", 16, 196, 0, 160),
    "space N=196 D=256": attention("space", 8, 196, 1, 256),
    "rotated D=64": attention("space", 8, 196, 1, 64, rotary_pairs="interleaved"),
    "normalized and rotated D=64": attention("space", 8, 196, 1, 64, rotary_pairs="half", qk_norm="layer"),
    **{f"absorbed C={c}": absorbed_attention(588, c) for c in (768, 384, 192, 520, 1024, 1536)},
    "absorbed and dropout C=768": absorbed_attention(588, 768, dropout_rate=0.1),
    **{
        f"crossmodal C={c} H={h}": crossmodal(588, c, h)
        for c, h in ((768, 12), (768, 8), (384, 12), (192, 12), (1536, 12))
    },
    **{f"add_layer_norm C={c}": norm(37696, c) for c in (768, 384, 3072, 192, 1024, 1536, 2048, 4096)},
    "bias_gelu C=3072": gelu(37696, 3072, 0.0),
    "bias_gelu and dropout C=3072": gelu(37696, 3072, 0.1),
}

OF_THE_MODEL = (
    "time T=8 D=64", "space N=196 D=64", "joint N=588 D=64", "absorbed C=768", "absorbed C=1536",
    "crossmodal C=768 H=12", "add_layer_norm C=768", "bias_gelu C=3072", "bias_gelu and dropout C=3072",
)  # fmt: skip


@contextmanager
def float32_products(dtype: str) -> Iterator[torch.dtype]:
    """The dtype of that name; `tf32` is float32 with TF32 products allowed."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    try:
        yield torch.float32 if dtype == "tf32" else getattr(torch, dtype)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


@functools.cache
def everything(target: Target) -> list[tuple[str, str, Launch]]:
    """(case, dtype, launch) of every kernel, dtype and configuration, once: in the first case that launches it.

    A consumer GPU is looked at in bfloat16, whose configurations float16 takes, and float32; one of AMD's in these and
    in the model's sizes.
    """
    found: dict[tuple, tuple[str, str, Launch]] = {}
    dtypes = ("bfloat16", "float32") if target in RELATIVES else DTYPES
    cases = {name: CASES[name] for name in OF_THE_MODEL} if target in AMD else CASES
    for dtype, (case, run) in itertools.product(dtypes, cases.items()):
        with float32_products(dtype) as torch_dtype:
            noted = launches(lambda run=run, dtype=torch_dtype: run(dtype), target)
        for launch in noted:
            found.setdefault(launch.constants, (case, dtype, launch))
    return list(found.values())


def label(target: Target) -> str:
    return f"sm_{target}" if isinstance(target, int) else target


def description(case: str, dtype: str, target: Target, launch: Launch) -> str:
    """The first half of the launch's line in the document: which kernel it is."""
    tiles = ("ROWS", "PACK", "BLOCK_M", "TAIL_M", "BLOCK_N", "TAIL_N", "BLOCK", "SPLIT_A", "SPLIT_B", "CHUNK")
    named = (*tiles, "num_warps", "num_stages")
    options = " ".join(f"{name}={launch.options[name]}" for name in named if name in launch.options)
    return f"| {case} | {launch.name} | {label(target)} | {dtype} | {options} |"


def fingerprint(operator: str) -> str:
    """Of the code of an operator's kernels, in which comments and docstrings do not count."""
    code = ""
    for path in sorted((Path(launching.__file__).parents[1] / operator).glob("triton_*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node) is not None:
                del node.body[0]
        code += ast.unparse(tree)
    return hashlib.sha256(code.encode()).hexdigest()[:12]


Known = dict[str, Resources | AmdResources]
OPERATORS = ("add_layer_norm", "bias_gelu", "cross_modal_attention", "space_time_attention")


def check(target: Target, index: int) -> tuple[str, bool]:
    """What one of `everything` takes with the installed Triton, and whether it fits and spills nothing."""
    case, dtype, launch = everything(target)[index]
    key = description(case, dtype, target, launch)
    try:
        resources = compile_launch(launch, target)
    except Exception as error:  # the compiler's own errors have no common class
        return f"{key} {type(error).__name__}: {error}", False
    good = resources.spills == 0 and resources.shared_memory <= shared_memory_of(target)
    return f"{key} {' | '.join(map(str, astuple(resources)))} |", good


def line(target: Target, index: int, known: Known, unchanged: set[str]) -> str:
    """The line of one of `everything`: what it is, and what it takes, if that is not known of an unchanged operator."""
    case, dtype, launch = everything(target)[index]
    key = description(case, dtype, target, launch)
    resources = (known.get(key) if launch.operator in unchanged else None) or compile_launch(launch, target)
    return f"{key} {' | '.join(map(str, astuple(resources)))} |"


def rows_of(text: str) -> Known:
    """For each description in the document's lines, the resources it states."""
    rows: Known = {}
    for row in re.findall(r"^\| .* \| (?:sm_|gfx)\d+ \| .*$", text, re.MULTILINE):
        cells = row.strip("| ").split(" | ")
        of = AmdResources if cells[2] in AMD else Resources
        key, stated = cells[: -len(fields(of))], cells[-len(fields(of)) :]
        values = [int(cell) if field.type == "int" else cell for field, cell in zip(fields(of), stated, strict=True)]
        rows[f"| {' | '.join(key)} |"] = of(*values)
    return rows


def documented() -> tuple[str, dict[str, str], Known]:
    """Triton's version, the operators' fingerprints and, for each description, the resources it states."""
    text = DOCUMENT.read_text()
    return re.findall(r"Triton (\S+),", text)[0], dict(re.findall(r"`(\w+)` ([0-9a-f]{12})", text)), rows_of(text)


_HEADER = f"""# What the Triton kernels take of a GPU

Compiled ahead of time by Triton {triton.__version__}, every kernel, dtype and configuration once: written by
`python -m tools.ahead_of_time`, compared with the kernels by `tests/triton/test_ahead_of_time.py`.
Shared memory is in bytes; spills are instructions that touch local memory; the matrix unit's instructions
and the 16-byte share of the global loads are read from the machine code. `tf32` is float32 with TF32
products allowed, where that makes a difference. sm_89 and sm_120 are looked at in bfloat16 and float32.
AMD's GPUs take the configurations of sm_80, none of which was chosen for them; they are looked at in the
model's sizes. All kernels compile for them. Their registers and spills, which are registers here, are
those of the metadata in the ELF; accumulators are vector registers, too; shared memory is their LDS.
The kernels' code, without comments, had the hashes
{", ".join(f"`{name}` {fingerprint(name)}" for name in OPERATORS)}.
"""


TABLES = (("NVIDIA", ARCHITECTURES, Resources), ("AMD", AMD, AmdResources))


def _here() -> str:
    """This machine's GPU."""
    major, minor = torch.cuda.get_device_capability()
    return str(10 * major + minor)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--jobs", type=int, default=1, help="how many kernels to compile at a time")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--changed", action="store_true", help="compile only what the document does not have")
    what.add_argument(
        "--check",
        nargs="?",
        const="here",
        choices=["here", *map(str, ARCHITECTURES), *AMD],
        help="compile for one architecture, this machine's GPU's if none is given, and look for spills",
    )
    return made


def main() -> int:
    arguments = parser().parse_args()
    context = multiprocessing.get_context("spawn")
    if arguments.check:
        target = _here() if arguments.check == "here" else arguments.check
        target = int(target) if target.isdigit() else target
        indices = range(len(everything(target)))
        bad = 0
        with ProcessPoolExecutor(arguments.jobs, context) as pool:
            for text, good in pool.map(check, itertools.repeat(target), indices):
                bad += not good
                print(f"{'good' if good else 'BAD '} {text}", flush=True)
        print(f"Triton {triton.__version__}, {label(target)}: {bad} of {len(indices)} kernels spill or do not fit")
        return 1 if bad else 0
    _, fingerprints, known = documented()
    unchanged = {name for name in OPERATORS if arguments.changed and fingerprints.get(name) == fingerprint(name)}
    lines = [_HEADER]
    with ProcessPoolExecutor(arguments.jobs, context) as pool:
        for title, targets, of in TABLES:
            columns = ["case", "kernel", "GPU", "dtype", "options", *(f.name.replace("_", " ") for f in fields(of))]
            lines += ["", f"## {title}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
            places = [(target, index) for target in targets for index in range(len(everything(target)))]
            repeated = itertools.repeat(known), itertools.repeat(unchanged)
            for done, text in enumerate(pool.map(line, *zip(*places, strict=True), *repeated), 1):
                print(f"{done}/{len(places)} {text}", flush=True)
                lines.append(text)
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

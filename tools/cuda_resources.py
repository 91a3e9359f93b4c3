"""The CUDA kernels compiled for GPUs that are not here: registers, spills, shared memory, matrix units, bulk copies.

python -m tools.cuda_resources      # rewrites docs/cuda-resources.md
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from tests.cuda.building import ROOT, Build, built, nvcc_version
from tests.cuda_on_host.compiling import emulated

DOCUMENT = ROOT / "docs" / "cuda-resources.md"
ARCHITECTURES = ("90a", "100")


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
    bulk_copies: int  # instructions, too

    @property
    def line(self) -> str:
        return f"| {' | '.join(map(str, astuple(self)))} |"


def resources(build: Build, architectures: tuple[str, ...]) -> list[Resources]:
    """Of every kernel, by architecture, source and name."""
    found = []
    # The build's log: a line for each object file, and then what the compiler says of it.
    steps = re.split(r"^\[\d+/\d+\] Building CUDA object \S*/(\w+)\.\w+\.o\n", build.log, flags=re.MULTILINE)
    for source, said in zip(steps[1::2], steps[2::2], strict=True):
        report = re.findall(
            r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
            r"(\d+) bytes spill loads.*?Used (\d+) registers",
            said,
            re.DOTALL,
        )
        code = {arch: machine_code(build.objects[source], arch) for arch in architectures} if report else {}
        for name, arch, stack, stores, loads, registers in report:
            body = code[arch][name]
            found.append(
                Resources(
                    source,
                    short_name(name),
                    arch,
                    int(registers),
                    int(stack),
                    int(stores) + int(loads),
                    len(re.findall(r"\bHMMA", body)),
                    len(re.findall(r"\bUBLKCP", body)),
                )
            )
    return sorted(found, key=lambda of: (architectures.index(of.arch), of.source, of.kernel))


def machine_code(compiled: Path, arch: str) -> dict[str, str]:
    """The instructions of every kernel in an object file."""
    import triton  # its wheel brings the disassembler

    disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    code = subprocess.check_output([disassembler, "-sass", "-arch", f"sm_{arch}", compiled], text=True)
    return dict(re.findall(r"Function : (\w+)\n(.*?)(?=Function : |\Z)", code, re.DOTALL))


def short_name(mangled: str) -> str:
    """The kernel's name with its template arguments."""
    full = subprocess.check_output(["c++filt", mangled], text=True)
    name = re.findall(r"(\w+_kernel<.*?>)\(", full)[0]
    return re.sub(r"hsta::(?:cuda::)?(?:_GLOBAL__N__\w+::|\(anonymous namespace\)::)?", "", name)


def compiled_from() -> str:
    """Names the kernels' code: the sources without their comments and white space."""
    csrc = ROOT / "csrc"
    sources = [csrc / "operators.h", *sorted((csrc / "common").iterdir()), *sorted((csrc / "cuda").iterdir())]
    code = "".join("".join(re.sub(r"//.*", "", path.read_text()).split()) for path in sources)
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def predictions(build: Build) -> list[str]:
    """A table of the time that kernels would take."""
    from tools.roofline.cuda import table  # Triton's disassembler is asked for

    return table({source: machine_code(build.objects[source], "90a") for source in build.objects})


def main() -> None:
    build = built(ARCHITECTURES)
    rows = [of.line for of in resources(build, ARCHITECTURES)]
    shared = emulated(["-m", "tests.cuda_on_host.shared_memory"])
    assert shared.returncode == 0, shared.stderr
    columns = [field.name.replace("_", " ") for field in fields(Resources)]
    lines = [
        "# What the CUDA kernels take of a GPU",
        "",
        f"Compiled ahead of time by nvcc {nvcc_version()} from code {compiled_from()}; written by",
        "`python -m tools.cuda_resources`, and compared with the kernels by `tests/cuda/test_resources.py`. Stack and",
        "spills are in bytes; the instructions of the matrix unit and those of bulk copies are read from the machine",
        "code.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *rows,
        "",
        "Shared memory is asked for at launch, in bytes a block, and is why no other GPU runs the kernels: these have",
        "232,448.",
        "",
        *shared.stdout.strip().splitlines(),
        "",
        "What a pass would take, and its share of a copy's bandwidth: predictions, by [Triton's model](roofline.md)",
        "(`tools/roofline/cuda.py`). Their pass has a second launch, for the parts of a sample.",
        "",
        *predictions(build),
    ]
    DOCUMENT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

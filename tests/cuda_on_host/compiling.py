"""Compiles the CUDA sources for the host, with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from tests.kernels import EMULATED

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FLAGS = (
    "-std=c++17", "-O1", "-g1", "-fPIC", "-fno-omit-frame-pointer", "-ffp-contract=off",
    "-Wall", "-Wextra", "-Wno-unknown-pragmas", f"-I{HERE}",
    # Left out of the latter what takes long to compile and the former finds too.
    "-fsanitize=address,undefined", "-fno-sanitize=null,object-size,vptr", "-fno-sanitize-recover=undefined",
)  # fmt: skip


def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("g++")
    if found is None:
        pytest.skip("the emulator needs g++")
    return found


def compiled(name: str, sources: Sequence[Path], flags: Sequence[str] = (), link: Sequence[str] = ()) -> Path:
    """The program or library `name` made of `sources`, kept in build/ until something it is made of changes."""
    headers = [path for folder in ("csrc", "tests/cuda_on_host") for path in sorted((ROOT / folder).rglob("*.h"))]

    def kept(name: str, command: list[str], texts: Sequence[bytes]) -> Path:
        digest = hashlib.sha256(b"\0".join([repr(command).encode(), *texts])).hexdigest()[:16]
        target = ROOT / "build" / "cuda_on_host" / digest / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                unfinished = target.with_name(f"unfinished.{name}")
                run([*command, "-o", str(unfinished)])
                unfinished.replace(target)
        return target

    def object_file(source: Path) -> Path:
        command = [compiler(), *FLAGS, *flags, "-x", "c++", "-c", str(source)]
        return kept(f"{source.stem}.o", command, [path.read_bytes() for path in (*headers, source)])

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(object_file, sources))
    return kept(name, [compiler(), *FLAGS, *map(str, objects), *link], [])


def emulated(arguments: Sequence[str], seed: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs Python with the kernels in place, and AddressSanitizer before all else: it watches PyTorch's tensors too."""
    where = (f"-print-file-name={name}" for name in ("libasan.so", "libstdc++.so"))
    libraries = [subprocess.check_output([compiler(), option], text=True).strip() for option in where]
    environment = os.environ | {
        EMULATED: str(kernel_module()),
        "HSTA_FIBER_SEED": str(seed),
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, " ".join(command) + "\n" + done.stderr[-5000:]


def kernel_module() -> Path:
    """hsta_kernels._cuda, for the host."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    kernels = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    # The slow ones to compile first, for both processors to end together.
    sources = [ROOT / "csrc" / "bindings" / "cuda_module.cpp", *reversed(kernels), HERE / "counters.cpp"]
    flags = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    return compiled("_cuda.so", sources, flags, ["-shared"])

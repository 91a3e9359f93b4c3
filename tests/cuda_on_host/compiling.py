"""Compiles the CUDA sources for the host, with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODULE_VARIABLE = "HSTA_EMULATED_CUDA"  # tells a test process where the kernels compiled for the host are
FLAGS = (
    "-std=c++17", "-O1", "-g1", "-fPIC", "-fno-omit-frame-pointer", "-ffp-contract=off",
    "-Wall", "-Wextra", "-Wno-unknown-pragmas",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", f"-I{HERE}",
)  # fmt: skip


def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("g++")
    if found is None:
        pytest.skip("the emulator needs g++")
    return found


def compiled(name: str, sources: Sequence[Path], flags: Sequence[str] = (), link: Sequence[str] = ()) -> Path:
    """The program or library `name` made of `sources`; it is kept in build/ until something it is made of changes."""
    headers = [path for folder in ("csrc", "tests/cuda_on_host") for path in (ROOT / folder).rglob("*.h")]
    texts = [path.read_bytes() for path in sorted([*headers, *sources])]
    digest = hashlib.sha256(b"\0".join([*texts, repr((compiler(), FLAGS, flags, link)).encode()])).hexdigest()
    folder = ROOT / "build" / "cuda_on_host" / digest[:16]
    target = folder / name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)

    def object_file(source: Path) -> Path:
        made = folder / f"{source.stem}.o"
        run([compiler(), *FLAGS, *flags, "-x", "c++", "-c", str(source), "-o", str(made)])
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = [str(made) for made in pool.map(object_file, sources)]
    run([compiler(), *FLAGS, *objects, *link, "-o", str(target)])
    return target


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, " ".join(command) + "\n" + done.stderr[-5000:]


def kernel_module() -> Path:
    """hsta_kernels._cuda, for the host."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    sources = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ROOT / "csrc" / "bindings" / "cuda_module.cpp"]
    flags = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    return compiled("_cuda.so", sources, flags, ["-shared"])

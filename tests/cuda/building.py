"""Builds the CUDA module as an installation does, for GPUs that are not here, and keeps what the compiler says."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {path.stem: path for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))}
# cmake and ninja are installed beside the interpreter, which need not be on the path.
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@dataclass(frozen=True)
class Build:
    """A finished build: the extension module, the object file of each source, and the build's output."""

    module: Path
    objects: dict[str, Path]
    log: str


def nvcc_version() -> str | None:
    if shutil.which("nvcc") is None:
        return None
    return re.findall(r"release ([\d.]+)", subprocess.check_output(["nvcc", "--version"], text=True))[0]


def configure(folder: Path, *options: str, path: Path | None = None) -> None:
    """Has CMake set up a build in `folder`; programs in `path` come before the machine's own."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    environment = ENVIRONMENT | ({"PATH": f"{path}{os.pathsep}{ENVIRONMENT['PATH']}"} if path else {})
    _run(
        [
            "cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DHSTA_CUDA_OUTPUT_NAME=_cuda.so", *options,
        ],
        environment,
    )  # fmt: skip


def built(architectures: Sequence[str]) -> Build:
    """The module for these GPUs, kept in build/ until something it is made of changes."""
    binding, rules = ROOT / "csrc" / "bindings" / "cuda_module.cpp", ROOT / "CMakeLists.txt"
    folders = (ROOT / "csrc" / "common", ROOT / "csrc" / "cuda")
    texts = [path.read_bytes() for path in (binding, rules, *(p for f in folders for p in sorted(f.iterdir())))]
    kind = [repr((*architectures, nvcc_version(), sys.version)).encode()]
    folder = ROOT / "build" / "cuda" / hashlib.sha256(b"\0".join(kind + texts)).hexdigest()[:16]
    log = folder / "build.log"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not log.exists():
            configure(folder, f"-DHSTA_CUDA_ARCHS={';'.join(architectures)}", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v")
            log.write_text(_run(["cmake", "--build", str(folder), "--target", "_cuda", "--parallel", "2"], ENVIRONMENT))
    objects = {name: folder / "CMakeFiles/_cuda.dir/csrc/cuda" / f"{name}.cu.o" for name in SOURCES}
    return Build(folder / "_cuda.so", objects, log.read_text())


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, " ".join(command) + "\n" + (done.stdout + done.stderr)[-5000:]
    return done.stdout

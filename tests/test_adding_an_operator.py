"""docs/adding-an-operator.md is carried out: what it says is added to a copy of the repository, built and tested."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WALKTHROUGH = (ROOT / "docs" / "adding-an-operator.md").read_text()
SECTIONS = re.findall(r"^## (\d+)\. `([^`]+)` \((new|changed)\)\n(.*?)(?=^## )", WALKTHROUGH, re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The operator's own, and of those that go through all operators the quick ones.
TESTS = [f"tests/ops/test_{name}.py" for name in ("scaled_add", "compiler", "dispatch", "special_values", "hypothesis")]
# Tools of this environment before the machine's; no choice of a backend that was made for other tests.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("HSTA_", "PYTEST_"))}
ENVIRONMENT["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def test_it_says_how_many_files_there_are():
    numbers, paths, kinds, _ = zip(*SECTIONS, strict=True)
    assert numbers == tuple("123456789")
    assert len(set(paths)) == 9 and kinds.count("new") == 6
    assert "Nine files, six of them new." in WALKTHROUGH
    assert sum(len(BLOCK.findall(body)) for *_, body in SECTIONS) == WALKTHROUGH.count("```") / 2  # none elsewhere


def test_the_operator_builds_and_passes_its_test(tmp_path):
    pybind11 = pytest.importorskip("pybind11", reason="the operator cannot be built without pybind11")
    for tool, names in {
        "a C++ compiler": (os.environ.get("CXX", "c++").split()[0], "g++", "clang++"),
        "CMake": ("cmake",),
        "Ninja": ("ninja",),
    }.items():
        if not any(shutil.which(name, path=ENVIRONMENT["PATH"]) for name in names):
            pytest.skip(f"the operator cannot be built without {tool}")
    for folder in ("csrc", "hsta_kernels", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    for _, path, kind, body in SECTIONS:
        carry_out(tmp_path / path, kind, BLOCK.findall(body))
    build(tmp_path, pybind11.get_cmake_dir())
    said = run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "scaled_add", *TESTS], tmp_path)
    summary = said.splitlines()[-1]
    assert "passed" in summary and "skipped" not in summary, said
    assert "scaled_add" in run([sys.executable, "-m", "hsta_kernels.info"], tmp_path)


def carry_out(path: Path, kind: str, blocks: Sequence[tuple[str, str]]) -> None:
    if kind == "new":
        ((_, text),) = blocks
        assert not path.exists(), path
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return
    text = path.read_text()
    for language, change in blocks:
        assert language == "diff", path
        lines = change.splitlines(keepends=True)
        old, new = ("".join(line[1:] or line for line in lines if line[0] != sign) for sign in "+-")
        assert text.count(old) == 1, f"{path} has not exactly one place like this:\n{old}"
        text = text.replace(old, new)
    path.write_text(text)


def build(folder: Path, pybind11: str) -> None:
    """For one instruction set, which all processors have."""
    run(
        [
            "cmake", "-S", ".", "-B", "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DHSTA_X86_64=OFF",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}", "-DHSTA_OUTPUT_NAME=_cpu.so",
        ],
        folder,
    )  # fmt: skip
    run(["cmake", "--build", "build"], folder)
    shutil.copy(folder / "build" / "_cpu.so", folder / "hsta_kernels")


def run(command: Sequence[str], folder: Path) -> str:
    environment = ENVIRONMENT | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, " ".join(command) + "\n" + done.stdout + done.stderr
    return done.stdout

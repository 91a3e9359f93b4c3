"""What an installation must and must not need."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]


def build(target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("setuptools", reason="setup.py cannot be run without setuptools")
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(target), "--build-temp", str(target)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_kernels_sources_know_nothing_of_torch():
    assert SOURCES
    for path in SOURCES:
        for line in path.read_text().splitlines():
            assert not (line.startswith("#include") and ("torch" in line or "ATen" in line or "c10" in line)), path


def test_without_a_compiler_the_build_says_in_one_sentence_what_to_install(tmp_path):
    done = build(tmp_path, PATH=str(tmp_path))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("hsta-kernels: no C++ compiler was found; install one")
    assert "HSTA_BUILD_CPU=0" in done.stderr


def test_compiling_can_be_left_out(tmp_path):
    done = build(tmp_path, PATH=str(tmp_path), HSTA_BUILD_CPU="0")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*.so"))


def imports(path: Path, base: Path = ROOT) -> set[str]:
    """Names of modules that a file imports, and of what it takes from them; relative ones resolved from `base`."""
    names = set()
    package = path.relative_to(base).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*parents, *([node.module] if node.module else [])))
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def test_relative_imports_are_seen(tmp_path):
    folder = tmp_path / "hsta_kernels" / "models"
    folder.mkdir(parents=True)
    (folder / "hsta.py").write_text("from . import plain\nfrom .config import HSTAConfig\nfrom ..ops import checks\n")
    found = imports(folder / "hsta.py", tmp_path)
    assert {"hsta_kernels.models.plain", "hsta_kernels.models.config", "hsta_kernels.ops.checks"} <= found


def test_imports_point_one_way():
    """Frontend -> models -> operators; references know no kernel; the frontend knows public names only."""
    for path in (ROOT / "hsta_kernels").rglob("*.py"):
        part = path.relative_to(ROOT).as_posix()
        found = {name for name in imports(path) if name.startswith(("hsta_kernels", "hsta."))}
        forbidden = {name for name in found if name == "hsta" or name.startswith("hsta.")}
        if "/ops/" in part:
            forbidden |= {name for name in found if name.startswith("hsta_kernels.models")}
        if path.stem == "reference":
            forbidden |= {
                name for name in found if name.endswith((".cpu", ".cuda", ".triton", ".autograd", ".backends"))
            }
        assert not forbidden, f"{part} imports {forbidden}"
    public = {"hsta_kernels", *(f"hsta_kernels.{name}" for name in __import__("hsta_kernels").__all__)}
    for path in (ROOT / "python" / "hsta").rglob("*.py"):
        found = {name for name in imports(path, ROOT / "python") if name.split(".")[0] == "hsta_kernels"}
        assert found <= public, f"{path.relative_to(ROOT)} imports {found - public}"


@pytest.mark.skipif(os.name == "nt", reason="shared objects are looked at the ELF and Mach-O way")
def test_the_versions_that_make_installs_leave_triton_to_pytorch():
    """PyTorch's build for GPUs, which pip takes where nothing says otherwise, asks for one version and no other."""
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert "torch" in pinned and "triton" not in pinned


def test_cpu_module_is_linked_with_no_openmp_of_its_own():
    modules = list((ROOT / "hsta_kernels").glob("_cpu*.so"))
    if not modules:
        pytest.skip("the CPU kernels are not built in this checkout")
    needed = subprocess.run(["ldd", str(modules[0])], capture_output=True, text=True, check=False).stdout
    assert "gomp" not in needed and "libtorch" not in needed

"""The CUDA kernels compiled for GPUs that are not here: no spills, wide loads, the committed table of registers.

`make test` compiles for one architecture; the slow test for all three.
"""

from __future__ import annotations

import pytest

from tests.cuda.resources import ARCHITECTURES, DOCUMENT, SOURCES, compile_source, line, nvcc_version

if nvcc_version() is None:
    pytest.skip("nvcc is not installed on this machine", allow_module_level=True)
pytest.importorskip("triton", reason="the disassembler comes with Triton, which is not installed")

QUICK = [(source, "90a") for source in SOURCES]


def check(source: str, arch: str) -> None:
    document = DOCUMENT.read_text()
    kernels = compile_source(source, arch)
    assert kernels
    for found in kernels:
        text = line(found)
        assert found.stack == found.spills == 0, text
        wide, loads = map(int, found.wide_loads.split("/"))
        if "merge" not in found.kernel:  # whose statistics are 8 bytes
            assert wide, text
        half = "Float16" in found.kernel
        if "attention" in source and found.kernel.startswith(("forward", "backward")):
            assert bool(found.matrix) == half, text  # float32 products are float32's
            assert wide >= loads - 2, text  # all but the statistics
        if f"nvcc {nvcc_version()};" in document:
            assert text in document, f"{text} is not in {DOCUMENT.name}: run `python -m tests.cuda.resources`"


@pytest.mark.parametrize(("source", "arch"), QUICK)
def test_kernels(source, arch):
    check(source, arch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "arch"), [(source, arch) for source in SOURCES for arch in ARCHITECTURES if (source, arch) not in QUICK]
)
def test_kernels_on_every_architecture(source, arch):
    check(source, arch)

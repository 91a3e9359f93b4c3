"""The CUDA kernels compiled for GPUs that are not here: no spills, wide loads, the committed table of registers.

`make test` compiles for one architecture; the slow test for all three.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cuda.resources import ARCHITECTURES, DOCUMENT, SOURCES, Resources, compile_source, line, nvcc_version

if nvcc_version() is None:
    pytest.skip("nvcc is not installed on this machine", allow_module_level=True)
pytest.importorskip("triton", reason="the disassembler comes with Triton, which is not installed")

QUICK = "90a"


@pytest.fixture(scope="module")
def quick() -> dict[str, list[Resources]]:
    """The kernels of every source, for one architecture."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SOURCES, pool.map(lambda source: compile_source(source, QUICK), SOURCES), strict=True))


def check(source: str, kernels: list[Resources]) -> None:
    document = DOCUMENT.read_text()
    assert kernels
    for found in kernels:
        text = line(found)
        assert found.stack == found.spills == 0, text
        wide, loads = map(int, found.wide_loads.split("/"))
        if "merge" not in found.kernel:  # whose parts may be halves, four at a time
            assert wide, text
        if "attention" in source and found.kernel.startswith(("forward", "backward")):
            assert bool(found.matrix) == ("Float16" in found.kernel), text  # float32 products are float32's
            assert wide >= loads - 2, text  # all but the statistics
        if f"nvcc {nvcc_version()};" in document:
            assert text in document, f"{text} is not in {DOCUMENT.name}: run `python -m tests.cuda.resources`"


@pytest.mark.parametrize("source", SOURCES)
def test_kernels(source, quick):
    check(source, quick[source])


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != QUICK])
def test_kernels_on_other_architectures(source, arch):
    check(source, compile_source(source, arch))

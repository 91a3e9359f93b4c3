"""The CUDA kernels compiled for GPUs that are not here: no spills, wide loads, the committed table of registers."""

from __future__ import annotations

import re

import pytest

from tests.cuda.building import SOURCES, nvcc_version
from tools.cuda_resources import ARCHITECTURES, DOCUMENT, Resources, compiled_from, resources

REGENERATE = f"{DOCUMENT.name} is not of these kernels: run `python -m tools.cuda_resources`"


def in_the_document() -> list[Resources]:
    rows = [line.strip("| \n").split(" | ") for line in DOCUMENT.read_text().splitlines() if "_kernel<" in line]
    return [Resources(*row[:3], *map(int, row[3:7]), row[7]) for row in rows]


def check(kernels: list[Resources]) -> None:
    assert {of.source for of in kernels} == set(SOURCES)
    for of in kernels:
        assert of.stack == of.spills == 0, of.line
        wide, loads = map(int, of.wide_loads.split("/"))
        if "merge" not in of.kernel:  # whose parts may be halves, four at a time
            assert wide, of.line
        if "attention" in of.source and of.kernel.startswith(("forward", "backward")):
            assert bool(of.matrix) == ("Float16" in of.kernel), of.line  # float32 products are float32's
            assert wide >= loads - 2, of.line  # all but the statistics


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_table_is_of_these_kernels_and_has_no_spills(arch):
    assert f"from code {compiled_from()};" in DOCUMENT.read_text(), REGENERATE
    table = in_the_document()
    check([of for of in table if of.arch == arch])
    of_each = [{(of.source, of.kernel) for of in table if of.arch == each} for each in ARCHITECTURES]
    assert of_each[0] == of_each[1] == of_each[2]


def test_kernels(build):
    pytest.importorskip("triton", reason="the disassembler comes with Triton, which is not installed")
    found = resources(build, ARCHITECTURES)
    check(found)
    assert {of.arch for of in found} == set(ARCHITECTURES)
    if re.search(rf"nvcc {nvcc_version()} ", DOCUMENT.read_text()):  # another one allots registers differently
        assert sorted(of.line for of in found) == sorted(of.line for of in in_the_document()), REGENERATE

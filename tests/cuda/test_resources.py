"""The CUDA kernels compiled for GPUs that are not here: no spills, bulk copies, the committed table of registers."""

from __future__ import annotations

import re

import pytest

from tests.cuda.building import SOURCES, nvcc_version
from tools.cuda_resources import ARCHITECTURES, DOCUMENT, Resources, compiled_from, predictions, resources

REGENERATE = f"{DOCUMENT.name} is not of these kernels: run `python -m tools.cuda_resources`"


def in_the_document() -> list[Resources]:
    rows = [line.strip("| \n").split(" | ") for line in DOCUMENT.read_text().splitlines() if "_kernel<" in line]
    return [Resources(*row[:3], *map(int, row[3:])) for row in rows]


def check(kernels: list[Resources]) -> None:
    assert {of.source for of in kernels} == set(SOURCES)
    for of in kernels:
        assert of.stack == of.spills == 0, of.line
        assert of.matrix and of.bulk_copies, of.line


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_table_is_of_these_kernels_and_has_no_spills(arch):
    assert f"from code {compiled_from()};" in DOCUMENT.read_text(), REGENERATE
    table = in_the_document()
    check([of for of in table if of.arch == arch])
    of_each = [{(of.source, of.kernel) for of in table if of.arch == each} for each in ARCHITECTURES]
    assert of_each[0] == of_each[1]


def test_kernels(build):
    pytest.importorskip("triton", reason="the disassembler comes with Triton, which is not installed")
    found = resources(build, ARCHITECTURES)
    check(found)
    assert {of.arch for of in found} == set(ARCHITECTURES)
    if re.search(rf"nvcc {nvcc_version()} ", DOCUMENT.read_text()):  # another one allots registers differently
        assert sorted(of.line for of in found) == sorted(of.line for of in in_the_document()), REGENERATE
        assert "\n".join(predictions(build)) in DOCUMENT.read_text(), REGENERATE

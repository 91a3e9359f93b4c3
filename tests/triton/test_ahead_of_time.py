"""Every kernel compiled for GPUs that are not here, and compared with docs/triton-resources.md.

`make test` compiles one dtype and the model's sizes for one architecture, and the other two where they differ most;
the slow test compiles everything in the table, which takes the better part of an hour on one core.
"""

from __future__ import annotations

import pytest

from hsta_kernels import backends

if not backends._triton_installed or backends.triton_interpreted:
    pytest.skip(
        "Triton's compiler is not there: not installed, or replaced by its interpreter", allow_module_level=True
    )

import triton

from benchmarks.ahead_of_time import ARCHITECTURES, CASES, DOCUMENT, DTYPES, SHARED_MEMORY, compile_case, line

TABLE = DOCUMENT.read_text()
# What still spills, and how many instructions of it; in all other kernels none does.
SPILLS = {("pooling C=768", "pool_backward", dtype, arch): 12 for dtype in DTYPES for arch in (90, 100)}
QUICK = [
    *(
        (case, "bfloat16", 90)
        for case in ("time T=8 D=64", "space N=196 D=64", "pooling C=768", "add_layer_norm C=768")
    ),
    ("time T=8 D=64", "bfloat16", 80),
    ("space N=196 D=64", "bfloat16", 100),
    ("pooling C=768", "float16", 80),
    ("time T=8 D=64", "tf32", 80),
]


def check(case: str, dtype: str, arch: int) -> None:
    for kernel, options, resources in compile_case(case, dtype, arch):
        text = line(case, dtype, arch, kernel, options, resources)
        assert resources.shared_memory <= SHARED_MEMORY[arch], text
        assert resources.spills <= SPILLS.get((case, kernel, dtype, arch), 0), text
        if kernel.startswith(("time", "flash", "pool")):
            assert (resources.matrix == "none") == (dtype == "float32"), text  # IEEE float32 has no matrix unit
        assert not resources.wide_loads.startswith("0/"), text
        if f"Triton {triton.__version__};" in TABLE:
            assert text in TABLE, f"`python -m benchmarks.ahead_of_time` has not been run since this changed: {text}"


@pytest.mark.parametrize(("case", "dtype", "arch"), QUICK)
def test_kernels_of_the_model(case, dtype, arch):
    check(case, dtype, arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_every_configuration(case, dtype, arch):
    check(case, dtype, arch)


def test_the_table_was_written_by_the_triton_that_the_project_pins():
    pins = (DOCUMENT.parents[1] / "constraints.txt").read_text()
    assert any(f"triton=={version};" in pins for version in [TABLE.split("Triton ")[1].split(";")[0]])

"""Kernels compiled for GPUs that are not here: shared memory, spills, matrix instructions, wide loads.

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

import torch

from benchmarks.ahead_of_time import (
    ARCHITECTURES,
    CASES,
    DTYPES,
    SHARED_MEMORY,
    attention,
    compile_case,
    compile_launch,
    gelu,
    launches,
    line,
    norm,
    pooling,
)

# (case, kernel, bytes of an element): instructions that spill all the same, on the worst architecture. These are the
# widest rows and, but for the first, float32, which no GPU is fast at. No other kernel spills.
SPILLS = {
    ("pooling C=768", "pool_backward", 2): 12,
    ("pooling C=384", "pool_backward", 4): 32,
    ("space N=196 D=32", "flash_backward_kv", 4): 10,
    ("time T=64 D=32", "flash_backward_kv", 4): 4,
    **{(f"{case} D=128", "flash_backward_q", 4): 2 for case in ("time T=8", "time T=64", "space N=196")},
    **{(f"{case} D=128", "flash_backward_kv", 4): 14 for case in ("time T=8", "time T=64", "space N=196")},
}
QUICK = [
    *(
        (case, "bfloat16", 90)
        for case in (
            "time T=8 D=64",
            "space N=196 D=64",
            "pooling C=768",
            "add_layer_norm C=768",
            "bias_gelu and dropout C=3072",
        )
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
        size = 2 if dtype in ("bfloat16", "float16") else 4
        assert resources.spills <= SPILLS.get((case, kernel, size), 0), text
        if kernel.startswith(("time", "flash", "pool")):
            assert (resources.matrix == "none") == (dtype == "float32"), text  # IEEE float32 has no matrix unit
            assert not resources.wide_loads.startswith("0/"), text


@pytest.mark.parametrize(("case", "dtype", "arch"), QUICK)
def test_kernels_of_the_model(case, dtype, arch):
    check(case, dtype, arch)


@pytest.mark.parametrize("run", [attention("time", 1, 1, 1, 8, 1), pooling(1, 8, 1, 1), norm(1, 1), gelu(1, 1, 0.5)])
def test_sizes_of_one(run):
    """The compiler takes an argument of 1 for a constant, which not everything can be done with."""
    for launch in launches(lambda: run(torch.bfloat16), 90):
        compile_launch(launch, 90)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_every_configuration(case, dtype, arch):
    check(case, dtype, arch)

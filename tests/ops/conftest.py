from __future__ import annotations

import pytest
import torch

from hsta_kernels import backends
from hsta_kernels.ops.space_time_attention.grid import AXES
from tests.kernels import DTYPES, SIMULATED, Kernel, kernels


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`kernel` is each of the backends of the file's OPERATOR; where it has none, with `operator`, each of each."""
    if "kernel" not in metafunc.fixturenames:
        if "operator" in metafunc.fixturenames:
            metafunc.parametrize("operator", backends.OPERATORS.values(), ids=backends.OPERATORS)
    elif "operator" in metafunc.fixturenames:
        pairs = [
            pytest.param(operator, *kernel.values, id=f"{operator.name}-{kernel.id}", marks=kernel.marks)
            for operator in backends.OPERATORS.values()
            for kernel in kernels(operator.implementations)
        ]
        metafunc.parametrize(("operator", "kernel"), pairs)
    else:
        metafunc.parametrize("kernel", kernels(metafunc.module.OPERATOR.implementations))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs no kernel is the same in a process that simulates one."""
    if SIMULATED is not None:
        items[:] = [item for item in items if "kernel" in item.fixturenames]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest, kernel: Kernel) -> torch.dtype:
    if kernel.simulated and kernel.name == "triton" and request.param == torch.bfloat16:
        pytest.skip("Triton's interpreter computes bfloat16 wrongly")
    if kernel.name == "cuda" and request.param == torch.float32:
        pytest.skip("the CUDA kernels take half types, as tests/cuda_on_host/test_parity.py shows")
    return request.param


@pytest.fixture(params=AXES)
def axis(request: pytest.FixtureRequest) -> str:
    return request.param

from __future__ import annotations

import pytest
import torch

from hsta_kernels import backends
from tests.kernels import Kernel, kernels
from tests.ops.conftest import dtype  # noqa: F401

# test_interpreter.py runs these in a process of its own, under Triton's interpreter; elsewhere parity needs a GPU.
collect_ignore = [] if backends.triton_interpreted else ["test_traffic.py"]


@pytest.fixture(params=kernels(["triton"]))
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return request.param


@pytest.fixture
def device(kernel: Kernel) -> torch.device:
    """Where the Triton kernels run: on the GPU, or on the CPU under the interpreter."""
    return torch.device(kernel.device)

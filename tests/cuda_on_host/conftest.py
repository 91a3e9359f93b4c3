from __future__ import annotations

import pytest
import torch

from hsta_kernels import backends
from tests.kernels import Kernel, kernels

# test_emulator.py runs these in processes of their own, where the kernels compiled for the host are put in place.
collect_ignore = [] if backends.cuda_emulated else ["test_launches.py", "test_traffic.py"]


@pytest.fixture(params=kernels(["cuda"]))
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return request.param


@pytest.fixture(params=(torch.bfloat16, torch.float16), ids=str)
def dtype(request: pytest.FixtureRequest):
    return request.param

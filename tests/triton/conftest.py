from __future__ import annotations

import pytest
import torch

from hsta_kernels import backends

# test_interpreter.py runs these in a process of its own, under Triton's interpreter; elsewhere parity needs a GPU.
collect_ignore = [] if backends.triton_interpreted else ["test_traffic.py"]
if backends.unavailable("triton") is not None:
    collect_ignore += ["test_parity.py", "test_special_values.py", "test_integration.py"]


@pytest.fixture
def device() -> torch.device:
    """Where the Triton kernels run: on the GPU, or on the CPU under the interpreter."""
    return torch.device("cpu" if backends.triton_interpreted else "cuda")

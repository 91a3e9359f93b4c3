from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from hsta_kernels import backends
from tests.cuda_on_host.compiling import MODULE_VARIABLE

EMULATED = MODULE_VARIABLE in os.environ

if EMULATED:
    spec = importlib.util.spec_from_file_location("_cuda", os.environ[MODULE_VARIABLE])
    backends.cuda = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backends.cuda)
    backends.cuda_emulated = True

# test_emulator.py runs these in processes of their own, where the kernels compiled for the host are put in place.
collect_ignore = [] if EMULATED else ["test_launches.py", "test_traffic.py"]
if backends.unavailable("cuda") is not None:
    collect_ignore.append("test_parity.py")  # a GPU's turn is in `make gpu-check`


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run: on a GPU, or on the CPU in the emulator."""
    return torch.device("cpu" if EMULATED else "cuda")

from __future__ import annotations

import pytest

from tests.cuda.building import Build, built, nvcc_version
from tools.cuda_resources import ARCHITECTURES


@pytest.fixture(scope="session")
def build() -> Build:
    """The CUDA module for the architectures of the default set."""
    if nvcc_version() is None:
        pytest.skip("nvcc is not installed on this machine")
    return built(ARCHITECTURES)

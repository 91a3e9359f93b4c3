from __future__ import annotations

import pytest

from tests.cuda.building import Build, built, nvcc_version

QUICK = "90a"  # of all architectures, the one that `make test` compiles for; the slow tests compile for the others


@pytest.fixture(scope="session")
def build() -> Build:
    """The CUDA module for one architecture."""
    if nvcc_version() is None:
        pytest.skip("nvcc is not installed on this machine")
    return built([QUICK])

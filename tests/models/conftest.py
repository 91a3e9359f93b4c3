"""A model as the authors' checkpoints have it."""

from __future__ import annotations

import pytest

from hsta_kernels import reference
from tests.models.checkpoints import OFFICIAL
from tests.models.parity import small_config, trained_reference


@pytest.fixture
def official() -> reference.HSTA:
    return trained_reference(small_config(**OFFICIAL)).eval()

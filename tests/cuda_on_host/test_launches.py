"""What the CUDA kernels ask of a GPU at launch, on the emulator: how many launches, and shared memory."""

from __future__ import annotations

import pytest
import torch

from hsta_kernels.ops.cross_modal_attention import cuda as absorbed_attention
from tests.cuda_on_host.counters import take_shared_memory
from tests.cuda_on_host.shared_memory import table
from tools.cuda_resources import DOCUMENT


def launches() -> int:
    return take_shared_memory()[1]


@pytest.mark.parametrize("tokens", (0, 40, 600))
def test_a_pass_is_one_launch(tokens):
    u, rows = torch.randn(2, 2, 96), torch.randn(2, tokens + 1, 96, dtype=torch.float16)
    launches()
    z, stats = absorbed_attention.forward(u, rows[:, 0], rows[:, 1:], 1e-6)
    assert launches() == 1
    absorbed_attention.backward(z, u, rows[:, 0], rows[:, 1:], z, stats, 1e-6)
    assert launches() == 1


def test_shared_memory_is_what_the_document_says():
    document = DOCUMENT.read_text()
    missing = [line for line in table() if line not in document]
    assert not missing, f"{DOCUMENT.name} lacks {missing}: run `python -m tools.cuda_resources`"

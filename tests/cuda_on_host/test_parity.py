"""What is special to the CUDA kernels, on the emulator (test_emulator.py says how) and on a GPU: several tiles of rows,
several blocks of a cluster, the widest rows, and what they refuse.

All else that is right for every backend is in tests/ops/test_<operator>.py.
"""

from __future__ import annotations

import pytest
import torch

from hsta_kernels import BackendError, backend
from hsta_kernels.ops import cross_modal_attention
from tests.kernels import Kernel
from tests.ops import test_cross_modal_attention as of_cross_modal

pytestmark = pytest.mark.usefixtures("poisoned_empty")


@pytest.mark.parametrize(
    ("batch", "tokens", "width", "heads"),
    [
        (1, 150, 40, 2),  # tiles forward: 64, 64 and 23 rows; backward: 48, three times, and 7
        (2, 400, 32, 2),  # three blocks, of 136 rows and at last 129
        (1, 191, 96, 1),  # one block, whole tiles
        (1, 192, 96, 1),  # two blocks
        (1, 5, 400, 16),  # all heads; rows that half of the registers do not take
        (1, 70, 768, 12),
    ],
)
def test_tiles_and_blocks(batch, tokens, width, heads, dtype, kernel):
    of_cross_modal.check(of_cross_modal.arguments(batch, tokens, width), heads, dtype, kernel)


def test_a_cluster_has_eight_blocks_at_most(kernel):
    of_cross_modal.check(of_cross_modal.arguments(1, 1700, 8), 1, kernel.half, kernel)


@pytest.mark.parametrize(
    ("width", "heads", "dtype", "reason"),
    [
        (272, 17, torch.float16, "there are 17 heads; the kernels take up to 16"),
        (12, 1, torch.float16, "tokens has rows of 12; the kernels take multiples of 8 up to 768"),
        (776, 1, torch.float16, "tokens has rows of 776; the kernels take multiples of 8 up to 768"),
        (16, 1, torch.float32, "tokens is torch.float32; the kernels take bfloat16 and float16"),
    ],
)
def test_what_is_refused_is_refused_by_name(width, heads, dtype, reason, kernel: Kernel):
    values = of_cross_modal.arguments(1, 5, width)
    zeros = [torch.zeros(value.shape, dtype=dtype, device=kernel.device) for value in values.values()]
    with backend("cuda"), pytest.raises(BackendError, match=reason):
        cross_modal_attention(*zeros, num_heads=heads)

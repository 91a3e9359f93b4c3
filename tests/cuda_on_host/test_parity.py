"""What is special to the CUDA kernels, on the emulator (test_emulator.py says how) and on a GPU: several tiles of rows,
several blocks of a cluster, all widths of rows, and what they refuse.

All else that is right for every backend is in tests/ops/test_<operator>.py.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from hsta_kernels import BackendError, backend
from hsta_kernels.ops import cross_modal_attention
from tests.kernels import Kernel
from tests.ops import test_cross_modal_attention as of_cross_modal
from tests.ops.parity import run
from tests.tolerances import assert_close_to_reference

pytestmark = pytest.mark.usefixtures("poisoned_empty")


@pytest.mark.parametrize(
    ("batch", "tokens", "width", "heads"),
    [
        (1, 150, 96, 2),  # tiles forward: 64, 64 and 23 rows; backward: 48, three times, and 7
        (2, 400, 96, 2),  # three blocks, of 136 rows and at last 129
        (1, 191, 192, 3),  # one block, whole tiles
        (1, 192, 192, 3),  # two blocks
        (1, 5, 384, 16),  # all heads
        (1, 70, 768, 12),
    ],
)
def test_tiles_and_blocks(batch, tokens, width, heads, dtype, kernel):
    of_cross_modal.check(of_cross_modal.arguments(batch, tokens, width), heads, dtype, kernel)


def test_a_cluster_has_eight_blocks_at_most(kernel):
    of_cross_modal.check(of_cross_modal.arguments(1, 1700, 96), 1, kernel.half, kernel)


def test_without_tokens_the_query_attends_to_itself(kernel):
    values = {key: value.to(kernel.device, kernel.half) for key, value in of_cross_modal.arguments(3, 0, 96).items()}
    ours, same, exact = (
        run(partial(cross_modal_attention, num_heads=3), {key: of(value) for key, value in values.items()}, name)
        for name, of in (("cuda", torch.clone), ("reference", torch.clone), ("reference", torch.Tensor.double))
    )
    for key in ("out 0", "grad of query_token", "grad of norm_weight", "grad of v_weight", "grad of v_bias"):
        assert_close_to_reference(ours[key], same[key], exact[key], key)
    assert ours["grad of tokens"].shape == (3, 0, 96)


@pytest.mark.parametrize(
    ("width", "heads", "dtype", "reason"),
    [
        (96, 24, torch.float16, "there are 24 heads; the kernels take up to 16"),
        (128, 1, torch.float16, "tokens has rows of 128; the kernels take 96, 192, 384, 768"),
        (96, 1, torch.float32, "tokens is torch.float32; the kernels take bfloat16 and float16"),
    ],
)
def test_what_is_refused_is_refused_by_name(width, heads, dtype, reason, kernel: Kernel):
    values = of_cross_modal.arguments(1, 5, width)
    zeros = [torch.zeros(value.shape, dtype=dtype, device=kernel.device) for value in values.values()]
    with backend("cuda"), pytest.raises(BackendError, match=reason):
        cross_modal_attention(*zeros, num_heads=heads)

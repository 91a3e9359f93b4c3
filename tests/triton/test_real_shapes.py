"""Parity at the model's own sizes, in bfloat16: what a new GPU, compiler or assembler is asked first.

Small, for it is run twice by tools/gpu_check.py: with the assembler that Triton brings, and with the toolkit's.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from hsta_kernels import backends
from hsta_kernels.ops import add_layer_norm, bias_gelu
from tests.ops import attention as of_attention
from tests.ops import test_cross_modal_attention as of_cross_modal
from tests.ops.parity import assert_parity

if backends.triton_interpreted:
    pytest.skip("the interpreter computes bfloat16 wrongly, and has no time for these sizes", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("poisoned_empty")
BF16 = torch.bfloat16


@pytest.mark.parametrize("patches", (196, 588, 1568))
@pytest.mark.parametrize("frames", (3, 8, 16))
@pytest.mark.parametrize("axis", of_attention.AXES)
def test_attention(axis, frames, patches, kernel):
    """Jointly, 3 and 8 frames of 196 patches are 588 and 1,568 tokens beside the prefix."""
    if axis == "joint" and frames * patches > 5000:
        pytest.skip("the reference's scores of so many tokens take gigabytes in float64")
    qkv = torch.randn(1, 1 + frames * patches, 3, 2, 64, dtype=torch.float64)
    of_attention.check(qkv, (frames, patches), axis, 1, BF16, kernel)


@pytest.mark.parametrize("width", (384, 768, 1024))
@pytest.mark.parametrize("tokens", (588, 1568))
def test_crossmodal(tokens, width, kernel):
    of_cross_modal.check(of_cross_modal.arguments(3, tokens, width), width // 64, BF16, kernel)


def rows(width: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two of 589 rows, two of one row."""
    return tuple(torch.randn(*shape, width).to(device, BF16) for shape in ((589,), (589,), (), ()))


@pytest.mark.parametrize("width", (384, 768, 1024))
def test_norm(width, kernel):
    x, residual, weight, bias = rows(width, kernel.device)
    tensors = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    assert_parity(add_layer_norm, tensors, [residual, x], kernel)


@pytest.mark.parametrize("rate", (0.0, 0.1))
@pytest.mark.parametrize("width", (1536, 3072))
def test_gelu(width, rate, kernel):
    x, grad, bias, _ = rows(width, kernel.device)
    seed = torch.tensor([5], device=kernel.device)
    function = partial(bias_gelu, dropout_rate=rate, seed=seed) if rate else bias_gelu
    assert_parity(function, {"x": x, "bias": bias}, [grad], kernel)

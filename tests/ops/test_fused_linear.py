"""The fused linear layers: what they are worked out in pieces of, and the dtypes that autocast makes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hsta_kernels import backend, backends
from hsta_kernels.ops import add_layer_norm, fused_linear
from tests.kernels import Kernel
from tests.ops.parity import assert_parity

pytestmark = pytest.mark.usefixtures("poisoned_empty")

OPERATOR = backends.OPERATORS["add_layer_norm"]
ROWS, WIDTH, HIDDEN = 50, 24, 40


@pytest.fixture
def in_small_pieces(monkeypatch):
    """Of 13, 13, 13 and 11 rows in float32."""
    monkeypatch.setattr(fused_linear, "_PIECE", 13 * HIDDEN * 4)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str, indirect=True)
def test_a_large_mlp_is_worked_out_in_pieces(dtype, in_small_pieces, monkeypatch):
    tensors = {
        "x": torch.randn(2, ROWS // 2, HIDDEN),
        "bias_before": torch.randn(HIDDEN),
        "weight": torch.randn(WIDTH, HIDDEN) * HIDDEN**-0.5,
        "bias": torch.randn(WIDTH),
    }
    seen, forward = [], fused_linear.bias_gelu.forward._init_fn
    monkeypatch.setattr(fused_linear, "call", lambda op, *a: (seen.append((op, len(a[0]))), op._init_fn(*a))[1])
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    grad = torch.randn(2, ROWS // 2, WIDTH).to(dtype)
    assert_parity(fused_linear.bias_gelu_linear, tensors, [grad], Kernel("cpu", "cpu"))
    pieces = [13, 13, 13, 11] if dtype == torch.float32 else [25, 25]
    assert [rows for op, rows in seen if op._init_fn is forward] == 2 * pieces
    assert [rows for op, rows in seen if op is fused_linear.bias_gelu.backward_] == pieces


def test_dropout_is_not_worked_out_in_pieces(in_small_pieces):
    """Its mask is a function of the row."""
    x, bias = torch.randn(ROWS, HIDDEN), torch.randn(HIDDEN)
    weight, zero = torch.eye(HIDDEN), torch.zeros(HIDDEN)
    torch.manual_seed(3)
    in_one = fused_linear.bias_gelu_linear(x, bias, weight, zero, 0.5)
    torch.manual_seed(3)
    seed = torch.randint(2**62, (1,))
    assert torch.equal(in_one, fused_linear.ops.bias_gelu(x, bias, 0.5, seed))


def test_pieces_are_the_cpus_alone():
    large = torch.empty(1, 1, device="meta").expand(10**6, 10**3)
    assert fused_linear.pieces(large, 10**3) == [slice(0, 10**6)]
    of_cpu = fused_linear.pieces(torch.empty(1, 1).expand(10**6, 10**3), 10**3)
    assert len(of_cpu) == 159
    assert torch.equal(torch.cat([torch.arange(10**6)[rows] for rows in of_cpu]), torch.arange(10**6))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str, indirect=True)
def test_autocast_norm_and_linear_layer_agree_with_their_parts(dtype, kernel):
    """A float32 stream: the norm is made in the dtype of the product, in both passes, and so is x's gradient."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=kernel.device)

    leaves = [draw(ROWS, WIDTH).to(dtype), draw(ROWS, WIDTH), *(draw(WIDTH) for _ in range(2)), draw(HIDDEN, WIDTH)]
    grads = draw(ROWS, HIDDEN).to(dtype), draw(ROWS, WIDTH)

    def results(together: bool) -> list[torch.Tensor]:
        x, residual, norm_weight, norm_bias, weight = (leaf.requires_grad_() for leaf in leaves)
        with torch.autocast(kernel.device, dtype=dtype), backend(kernel.name):
            if together:
                outs = fused_linear.add_layer_norm_linear(x, residual, norm_weight, norm_bias, weight, None)
            else:
                y, total = add_layer_norm(x, residual, norm_weight, norm_bias, norm_dtype=dtype)
                assert y.dtype == dtype
                outs = F.linear(y, weight), total
        return [*outs, *torch.autograd.grad(outs, (x, residual, norm_weight, norm_bias, weight), grads)]

    for ours, theirs in zip(results(True), results(False), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)

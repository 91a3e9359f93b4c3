from __future__ import annotations

import functools

import pytest
import torch

from hsta_kernels import backend, backends
from hsta_kernels.ops import add_layer_norm
from tests.ops.parity import assert_parity, assert_same_bits, run

pytestmark = pytest.mark.usefixtures("poisoned_empty")

OPERATOR = backends.OPERATORS["add_layer_norm"]
ROWS = (8, 9, 32)
EXAMPLES = {"add_layer_norm": (add_layer_norm, {"x": ROWS, "residual": ROWS, "weight": (32,), "bias": (32,)})}


@pytest.mark.parametrize(
    "shape", [(2, 17, 48), (1, 3), (1, 8), (5, 768), (3, 2, 4, 40), (70, 8), (2, 1040), (0, 8)], ids=str
)
@pytest.mark.parametrize("magnitude", (1.0, 1e4, 1e-4))
def test_parity(shape, magnitude, dtype, kernel):
    if dtype == torch.float16 and magnitude > 1:
        magnitude = 1e3  # 1e4 squared sums stay in range, but sums of such halves overflow the dtype itself
    x, residual = (torch.randn(shape, dtype=torch.float64) * magnitude + magnitude for _ in range(2))
    weight, bias = torch.randn(shape[-1], dtype=torch.float64), torch.randn(shape[-1], dtype=torch.float64)
    tensors = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    tensors = {key: tensor.to(kernel.device, dtype) for key, tensor in tensors.items()}
    grads = [torch.randn(shape, dtype=torch.float64).to(kernel.device, dtype) for _ in range(2)]
    assert_parity(add_layer_norm, tensors, grads, kernel)


def test_layouts(kernel):
    """Rows that are slices, transposed, not aligned, the same for all; gradients that are one number, or transposed."""
    device = kernel.device
    base, grad = torch.randn(2, 6, 4, 40, device=device), torch.randn(2, 4, 6, 40, device=device).transpose(1, 2)
    vectors = {"weight": torch.randn(40, device=device), "bias": torch.randn(80, device=device)[::2]}
    one = torch.tensor(0.7, device=device).expand(2, 6, 4, 40)
    wide = torch.full((2, 8, 4, 51), float("nan"), device=device)
    sliced, unaligned = wide[:, 1:7, :, :40], wide[:, 1:7, :, 11:]
    transposed = base.transpose(1, 2).contiguous().transpose(1, 2)
    for x, residual, grads in (
        (sliced, transposed, (grad, one)),
        (unaligned, base.transpose(-1, -2).contiguous().transpose(-1, -2), (one, grad)),
        (base[:1].expand(2, -1, -1, -1), base[..., :1, :].expand_as(base), (one, one)),
    ):
        if x.isnan().any():
            x.copy_(base)
        tensors = {"x": x, "residual": residual, **vectors}
        strided, _, _ = assert_parity(add_layer_norm, tensors, grads, kernel, case=f"for strides {x.stride()}")
        copies = {key: tensor.contiguous() for key, tensor in tensors.items()}
        assert_same_bits(strided, run(add_layer_norm, copies, kernel.name, [g.contiguous() for g in grads]))


def test_eps_of_zero(kernel):
    """Tiles are higher than these five rows: what is not there has no variance to divide by, and adds nothing."""
    x, residual = torch.randn(5, 40, device=kernel.device), torch.randn(5, 40, device=kernel.device)
    vectors = {"weight": torch.randn(40, device=kernel.device), "bias": torch.randn(40, device=kernel.device)}
    function = functools.partial(add_layer_norm, eps=0.0)
    assert_parity(function, {"x": x, "residual": residual, **vectors}, [residual, x], kernel)


def test_reference_gradients_numerically():
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 5), (3, 5), (5,), (5,))]
    assert torch.autograd.gradcheck(add_layer_norm, tensors)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str, indirect=True)
@pytest.mark.parametrize("stream", ("residual", "x"))
def test_autocast_adds_in_the_wider_dtype(stream, dtype, kernel):
    """Usually the residual stream is the wider one; kernels run either way."""
    wide, narrow = torch.randn(3, 8, device=kernel.device), torch.randn(3, 8, device=kernel.device).to(dtype)
    weight, bias = torch.randn(8, device=kernel.device), torch.randn(8, device=kernel.device)
    x, residual = (narrow, wide) if stream == "residual" else (wide, narrow)
    leaves = [x.requires_grad_(), residual.requires_grad_()]
    with torch.autocast(kernel.device, dtype=dtype), backend(kernel.name):
        norm, total = add_layer_norm(x, residual, weight, bias)
    assert norm.dtype == total.dtype == torch.float32
    assert torch.equal(total, wide + narrow.float())
    grads = torch.autograd.grad(norm.square().sum(), leaves)
    assert [grad.dtype for grad in grads] == [x.dtype, residual.dtype]


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str, indirect=True)
@pytest.mark.parametrize("stream", ("residual", "x"))
def test_the_norm_may_have_the_narrower_dtype(stream, dtype, kernel):
    """The same norm rounded once, and of the same incoming gradient the same gradients."""
    wide, narrow = torch.randn(5, 40, device=kernel.device), torch.randn(5, 40, device=kernel.device).to(dtype)
    weight, bias = torch.randn(40, device=kernel.device), torch.randn(40, device=kernel.device)
    x, residual = (narrow, wide) if stream == "residual" else (wide, narrow)
    leaves = [tensor.requires_grad_() for tensor in (x, residual, weight, bias)]
    of_norm, of_sum = torch.randn(5, 40, device=kernel.device).to(dtype), torch.randn(5, 40, device=kernel.device)
    results = {}
    for norm_dtype in (torch.float32, dtype):
        with torch.autocast(kernel.device, dtype=dtype), backend(kernel.name):
            norm, total = add_layer_norm(x, residual, weight, bias, norm_dtype=norm_dtype)
        assert norm.dtype == norm_dtype
        grads = torch.autograd.grad((norm, total), leaves, (of_norm.to(norm_dtype), of_sum))
        results[norm_dtype] = norm.to(dtype), total, *grads
    for ours, theirs in zip(results[dtype], results[torch.float32], strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_norm_dtype_is_one_of_the_two():
    x = torch.zeros(3, 8)
    with pytest.raises(ValueError, match=r"norm_dtype must be torch.float32 .* got torch.float16"):
        add_layer_norm(x, x, x[0], x[0], norm_dtype=torch.float16)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": 1.0}, TypeError, "x must be a tensor"),
        ({"residual": torch.zeros(3, 7)}, ValueError, "residual must have shape the shape of x"),
        ({"residual": torch.zeros(3, 8).half()}, TypeError, "residual must have the dtype of x"),
        ({"weight": torch.zeros(7)}, ValueError, r"weight must have shape \(C,\)"),
        ({"bias": torch.zeros(1, 8)}, ValueError, r"bias must have shape \(C,\)"),
        ({"x": torch.zeros(3, 8, dtype=torch.bool)}, TypeError, "x must be float32"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    good = {
        "x": torch.zeros(3, 8),
        "residual": torch.zeros(3, 8),
        "weight": torch.ones(8),
        "bias": torch.zeros(8),
    }
    with pytest.raises(error, match=message):
        add_layer_norm(**(good | change))

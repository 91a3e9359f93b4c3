from __future__ import annotations

import pytest
import torch

from hsta_kernels import backend, backends
from hsta_kernels.ops import add_layer_norm
from tests.tolerances import assert_close_to_reference, nearby

KERNELS = [name for name in ("cpu",) if backends.unavailable(name) is None]


def run(tensors: list[torch.Tensor], name: str, grads: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    with backend(name):
        outs = add_layer_norm(*leaves)
    return [
        *(o.detach() for o in outs),
        *torch.autograd.grad(outs, leaves, [g.to(o.dtype) for g, o in zip(grads, outs, strict=True)]),
    ]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("shape", [(2, 17, 48), (1, 3), (5, 768), (3, 2, 4, 40), (0, 8)])
@pytest.mark.parametrize("magnitude", (1.0, 1e4, 1e-4))
def test_parity(shape, magnitude, dtype, kernel):
    if dtype == torch.float16 and magnitude > 1:
        magnitude = 1e3  # 1e4 squared sums stay in range, but sums of such halves overflow the dtype itself
    x, residual = (torch.randn(shape, dtype=torch.float64) * magnitude + magnitude for _ in range(2))
    weight, bias = torch.randn(shape[-1], dtype=torch.float64), torch.randn(shape[-1], dtype=torch.float64)
    tensors = [t.to(dtype) for t in (x, residual, weight, bias)]
    grads = [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(2)]
    exact = run([t.double() for t in tensors], "reference", [g.double() for g in grads])
    near = run([nearby(t) for t in tensors], "reference", [nearby(g) for g in grads])
    same, ours = run(tensors, "reference", grads), run(tensors, kernel, grads)
    names = ("norm", "sum", "grad x", "grad residual", "grad weight", "grad bias")
    for name, a, b, c, d in zip(names, ours, same, exact, near, strict=True):
        assert_close_to_reference(a, b, c, name, d)


def test_reference_gradients_numerically():
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 5), (3, 5), (5,), (5,))]
    assert torch.autograd.gradcheck(add_layer_norm, tensors)


def test_compile_without_graph_breaks():
    tensors = [torch.randn(s) for s in ((3, 8), (3, 8), (8,), (8,))]
    compiled = torch.compile(add_layer_norm, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(*tensors), add_layer_norm(*tensors), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("stream", ("residual", "x"))
def test_autocast_adds_in_the_wider_dtype(stream, kernel):
    """Usually the residual stream is the wider one; kernels run either way."""
    wide, narrow, weight, bias = torch.randn(3, 8), torch.randn(3, 8).bfloat16(), torch.randn(8), torch.randn(8)
    x, residual = (narrow, wide) if stream == "residual" else (wide, narrow)
    leaves = [x.requires_grad_(), residual.requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16), backend(kernel):
        norm, total = add_layer_norm(x, residual, weight, bias)
    assert norm.dtype == total.dtype == torch.float32
    assert torch.equal(total, wide + narrow.float())
    grads = torch.autograd.grad(norm.square().sum(), leaves)
    assert [grad.dtype for grad in grads] == [x.dtype, residual.dtype]


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

"""Crossmodal attention in absorbed form against the direct form in float64."""

from __future__ import annotations

import pytest
import torch

from hsta_kernels import backend, backends
from hsta_kernels.ops import cross_modal_attention
from hsta_kernels.ops.cross_modal_attention import autograd
from tests.tolerances import assert_close_to_reference, nearby

pytestmark = pytest.mark.usefixtures("poisoned_empty")

KERNELS = [name for name in ("cpu",) if backends.unavailable(name) is None]
NAMES = ("query_token", "tokens", *(f"{x}_{y}" for x in ("norm", "q", "k", "v") for y in ("weight", "bias")))


def arguments(batch: int, tokens: int, width: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    shapes = [(batch, width), (batch, tokens, width), *[(width,)] * 2, *[(width, width), (width,)] * 3]
    values = {name: torch.randn(shape, dtype=torch.float64) for name, shape in zip(NAMES, shapes, strict=True)}
    for name in ("q_weight", "k_weight", "v_weight"):
        values[name] *= width**-0.5
    for name in ("query_token", "tokens"):
        values[name] = values[name] * scale + 0.5 * scale  # a mean that LayerNorm must remove
    return values


def run(values: dict[str, torch.Tensor], heads: int, name: str, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    leaves = {key: value.detach().requires_grad_() for key, value in values.items()}
    with backend(name):
        out = cross_modal_attention(**leaves, num_heads=heads)
    grads = torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype))
    return {"out": out.detach()} | {f"grad of {key}": g for key, g in zip(leaves, grads, strict=True)}


def check(values64, heads, dtype, kernel, nearby=nearby):
    values = {key: value.to(dtype) for key, value in values64.items()}
    grad = torch.randn(values["query_token"].shape, dtype=torch.float64).to(dtype)
    exact = run({key: value.double() for key, value in values.items()}, heads, "reference", grad.double())
    near = run({key: nearby(value) for key, value in values.items()}, heads, "reference", nearby(grad))
    same = run(values, heads, "reference", grad)
    ours = run(values, heads, kernel, grad)
    for key in ours:
        if key == "grad of k_bias":
            assert not ours[key].any()
        else:
            assert_close_to_reference(ours[key], same[key], exact[key], key, near[key])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize(
    ("batch", "tokens", "width", "heads"),
    [(2, 17, 48, 3), (8, 1, 32, 1), (2, 197, 96, 3), (1, 588, 768, 12), (4, 324, 192, 6), (2, 33, 40, 5)],
)
def test_parity(batch, tokens, width, heads, dtype, kernel):
    check(arguments(batch, tokens, width), heads, dtype, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("offset", (0.49, 3, 7, 9, 100, 1000))
def test_parity_of_rows_far_from_zero(offset, dtype, kernel):
    """Means of half a standard deviation, of several and of very many; rows of one value, whose variance is zero."""
    values = arguments(4, 65, 96)
    values["tokens"][:, ::2] += offset
    values["tokens"][:, 1::2] -= offset
    values["tokens"][:, 7] = offset
    # The means are to be removed without a trace, though rounding the rows would leave one: no nearby inputs.
    check(values, 3, dtype, kernel, nearby=torch.Tensor.double)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize(
    ("batch", "tokens", "width", "heads"),
    [(2, 17, 48, 3), (8, 1, 32, 1), (1, 588, 768, 12), (3, 324, 192, 6), (2, 33, 40, 5), (5, 0, 20, 4), (1, 9, 7, 1)],
)
def test_inference(batch, tokens, width, heads, dtype, kernel):
    """Without gradients the projections may be kernels too."""
    values = {key: value.to(dtype) for key, value in arguments(batch, 2 * tokens, width).items()}
    values["tokens"] = values["tokens"][:, tokens:]
    values["query_token"] = values["query_token"].repeat(1, 2)[:, width:]
    values["k_weight"] = values["k_weight"].T.contiguous().T
    with torch.no_grad(), backend("reference"):
        exact = cross_modal_attention(**{key: value.double() for key, value in values.items()}, num_heads=heads)
        same = cross_modal_attention(**values, num_heads=heads)
    with torch.no_grad(), backend(kernel):
        ours = cross_modal_attention(**values, num_heads=heads)
        first = cross_modal_attention(
            **values | {name: values[name][:1] for name in ("query_token", "tokens")}, num_heads=heads
        )
    assert_close_to_reference(ours, same, exact)
    assert torch.equal(first, ours[:1]), "a sample's result depends on its batch"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", (1e4, 1e-4))
def test_magnitudes(scale, kernel):
    check(arguments(2, 33, 48, scale), 3, torch.float32, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_tokens_the_query_attends_to_itself(kernel):
    values = {key: value.float() for key, value in arguments(3, 0, 24).items()}
    grad = torch.randn(3, 24)
    ours, exact = run(values, 3, kernel, grad), run(values, 3, "reference", grad)
    for key in ours:
        torch.testing.assert_close(ours[key], exact[key], atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_slice_of_a_longer_sequence_is_read_in_place(kernel):
    values = {key: value.float() for key, value in arguments(2, 18, 48).items()}
    with backend(kernel):
        expected = cross_modal_attention(**(values | {"tokens": values["tokens"][:, 1:].contiguous()}), num_heads=3)
        sliced = cross_modal_attention(**(values | {"tokens": values["tokens"][:, 1:]}), num_heads=3)
        transposed = values["tokens"][:, 1:].transpose(1, 2).contiguous().transpose(1, 2)
        columns = cross_modal_attention(**(values | {"tokens": transposed}), num_heads=3)
    assert torch.equal(sliced, expected)
    assert torch.equal(columns, expected)


def test_reference_gradients_numerically():
    values = arguments(1, 5, 8)
    names = [name for name in NAMES if name != "k_bias"]

    def function(*tensors):
        return cross_modal_attention(**dict(zip(names, tensors, strict=True)), k_bias=values["k_bias"], num_heads=2)

    assert torch.autograd.gradcheck(function, [values[name].requires_grad_() for name in names])


@pytest.mark.parametrize("kernel", KERNELS)
def test_empty_batch(kernel):
    values = {key: value.float().requires_grad_() for key, value in arguments(0, 7, 16).items()}
    with backend(kernel):
        out = cross_modal_attention(**values, num_heads=2)
    out.sum().backward()
    assert out.shape == (0, 16)


@pytest.mark.parametrize("kernel", KERNELS)
def test_compile_without_graph_breaks(kernel):
    values = {key: value.float() for key, value in arguments(2, 17, 48).items()}
    grad = torch.randn(2, 48)
    expected = run(values, 3, kernel, grad)
    torch._dynamo.reset()
    compiled = torch.compile(cross_modal_attention, fullgraph=True, backend="aot_eager")
    leaves = {key: value.detach().requires_grad_() for key, value in values.items()}
    with backend(kernel):
        out = compiled(**leaves, num_heads=3)
    grads = torch.autograd.grad(out, list(leaves.values()), grad)
    torch.testing.assert_close(out, expected["out"])
    for key, g in zip(leaves, grads, strict=True):
        torch.testing.assert_close(g, expected[f"grad of {key}"], msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("kernel", KERNELS)
def test_opcheck(kernel):
    u, query, tokens = torch.randn(2, 3, 48), torch.randn(2, 48), torch.randn(2, 7, 48)
    torch.library.opcheck(autograd._forward, (u, query, tokens, 1e-6, kernel))
    z, lse = autograd._forward(u, query, tokens, 1e-6, kernel)
    torch.library.opcheck(autograd._backward, (torch.randn_like(z), u, query, tokens, z, lse, 1e-6, kernel))
    vector, matrix = torch.randn(48), torch.randn(48, 48)
    weights = (vector, vector, matrix, vector, matrix, matrix, vector)
    torch.library.opcheck(autograd.cross_modal_attention, (query, tokens, *weights, 3, 1e-6))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": None}, TypeError, "tokens must be a tensor"),
        ({"tokens": torch.zeros(2, 16)}, ValueError, r"tokens must have shape \(B, N, C\)"),
        (
            {"query_token": torch.zeros(3, 16)},
            ValueError,
            r"query_token must have shape \(B, C\) = \(2, 16\); got \(3, 16\)",
        ),
        ({"query_token": torch.zeros(2, 16).half()}, TypeError, "query_token must have the dtype of tokens"),
        ({"k_weight": torch.zeros(16, 8)}, ValueError, "k_weight must have shape"),
        ({"v_bias": torch.zeros(8)}, ValueError, "v_bias must have shape"),
        ({"norm_weight": torch.zeros(16, dtype=torch.int32)}, TypeError, "norm_weight must be float32"),
        ({"q_bias": torch.zeros(16, device="meta")}, ValueError, "q_bias must be on the device of tokens"),
        ({"num_heads": 3}, ValueError, "num_heads must divide C = 16; got 3"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    values = {key: value.float() for key, value in arguments(2, 7, 16).items()} | {"num_heads": 2}
    with pytest.raises(error, match=message):
        cross_modal_attention(**(values | change))

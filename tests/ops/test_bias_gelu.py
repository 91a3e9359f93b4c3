from __future__ import annotations

import pytest
import torch

from hsta_kernels import backend, backends
from hsta_kernels.ops import bias_gelu
from hsta_kernels.ops.bias_gelu.reference import random_words
from tests.tolerances import assert_close_to_reference, nearby

KERNELS = [name for name in ("cpu",) if backends.unavailable(name) is None]
needs_cpu = pytest.mark.skipif("cpu" not in KERNELS, reason="the CPU kernels are not built")


def run(x, bias, grad, name, **options) -> list[torch.Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, bias)]
    with backend(name):
        out = bias_gelu(*leaves, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("shape", [(2, 17, 48), (9, 3), (5, 768), (3, 2, 4, 41), (70, 65), (0, 8)])
@pytest.mark.parametrize("magnitude", (1.0, 1e4, 1e-4))
def test_parity(shape, magnitude, dtype, kernel):
    x, bias, grad = (torch.randn(s, dtype=torch.float64) for s in (shape, shape[-1:], shape))
    tensors = [t.to(dtype) for t in (x * magnitude, bias * magnitude, grad)]
    exact, near = (run(*map(inputs, tensors), "reference") for inputs in (torch.Tensor.double, nearby))
    results = run(*tensors, kernel), run(*tensors, "reference"), exact, near
    for name, a, b, c, d in zip(("out", "grad x", "grad bias"), *results, strict=True):
        assert_close_to_reference(a, b, c, name, d)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("shape", [(2, 17, 48), (7, 131), (40, 1)])
def test_parity_with_dropout(shape, dtype, kernel):
    """The same elements are dropped on every backend, in both passes."""
    tensors = [torch.randn(s).to(dtype) for s in (shape, shape[-1:], shape)]
    options = {"dropout_rate": 0.3, "seed": torch.tensor([-(2**40) - 5])}
    exact, near = (run(*map(inputs, tensors), "reference", **options) for inputs in (torch.Tensor.double, nearby))
    results = run(*tensors, kernel, **options), run(*tensors, "reference", **options), exact, near
    for name, a, b, c, d in zip(("out", "grad x", "grad bias"), *results, strict=True):
        assert torch.equal(a == 0, b == 0), name
        assert_close_to_reference(a, b, c, name, d)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_mask_where_float32_would_round_the_rate(kernel):
    """A random word of this seed lies between 2**32 times 0.9 and 2**32 times what float32 makes of 0.9."""
    options = {"dropout_rate": 0.9, "seed": torch.tensor([742630])}
    x, bias = torch.ones(84, 69), torch.zeros(69)
    words = random_words(84, 69, options["seed"])
    rates = [int(rate * 2**32) for rate in (0.9, float(torch.tensor(0.9)))]
    assert ((words >= min(rates)) & (words < max(rates))).any()
    ours, theirs = (bias_gelu(x, bias, backend=name, **options) for name in (kernel, "reference"))
    assert torch.equal(ours == 0, theirs == 0)


@needs_cpu
def test_error_of_the_tail():
    """gelu(x) = max(x, 0) - |x| Phi(-|x|): the second term's error, before the difference is rounded."""
    x = torch.cat([-torch.logspace(-6, 1.3, 100_003), -torch.linspace(0, 14, 100_003)])
    with backend("cpu"):
        product = bias_gelu(x[None], torch.zeros_like(x))[0]
    exact = x.double() * torch.special.erfc(-x.double() / 2**0.5) / 2
    assert ((product.double() - exact).abs() <= -x * 2**-23).all()


@needs_cpu
def test_special_values():
    """Where the reference has NaN: at minus infinity, and at both infinities in the gradient."""
    x = torch.tensor([[float("inf"), -float("inf"), float("nan"), 0.0, 1e30, -1e30]])
    results = []
    for name, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        leaf = x.to(dtype).requires_grad_()
        with backend(name):
            out = bias_gelu(leaf, torch.zeros(6, dtype=dtype))
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        results.append([t.detach().float() for t in (out, grad)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_random_words_are_philox():
    """The answer that the generator's authors publish for counter and key zero (Random123, kat_vectors)."""
    words = random_words(1, 4, torch.tensor([0]))
    assert [f"{w:08x}" for w in words[0].tolist()] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_dropout_statistics_and_scale():
    x = torch.full((400, 500), 3.0)
    out = bias_gelu(x, torch.zeros(500), 0.25, torch.tensor([7]))
    kept = out != 0
    assert abs(kept.double().mean() - 0.75) < 5 * (0.75 * 0.25 / x.numel()) ** 0.5
    assert torch.allclose(out[kept], torch.nn.functional.gelu(x[kept]) / 0.75)
    columns = kept.double().mean(0)  # no column and no row stands out
    assert (columns - 0.75).abs().max() < 6 * (0.75 * 0.25 / 400) ** 0.5
    assert not torch.equal(kept[0], kept[1])


def test_seed_is_drawn_from_torch():
    x, bias = torch.randn(64, 64), torch.randn(64)
    torch.manual_seed(3)
    first, second = bias_gelu(x, bias, 0.5), bias_gelu(x, bias, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, bias_gelu(x, bias, 0.5))
    assert not torch.equal(first, second)


def test_strided_rows_and_gradients():
    wide, bias = torch.randn(5, 96), torch.randn(32)
    for x in (wide[:, 32:64], torch.randn(32, 5).T):
        copy = x.contiguous()
        assert torch.equal(bias_gelu(x, bias), bias_gelu(copy, bias))
    leaf = wide[:, :32].clone().requires_grad_()
    bias_gelu(leaf, bias).sum().backward()  # an expanded gradient
    other = leaf.detach().clone().requires_grad_()
    bias_gelu(other, bias).backward(torch.ones(5, 32))
    assert torch.equal(leaf.grad, other.grad)


def test_reference_gradients_numerically():
    x, bias = torch.randn(3, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    arguments = (x.requires_grad_(), bias.requires_grad_(), 0.4, torch.tensor([11]))
    assert torch.autograd.gradcheck(bias_gelu, arguments)


@pytest.mark.parametrize("rate", (0.0, 0.5))
def test_compile_without_graph_breaks(rate):
    x, bias, seed = torch.randn(3, 8), torch.randn(8), torch.tensor([5])
    compiled = torch.compile(bias_gelu, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, bias, rate, seed), bias_gelu(x, bias, rate, seed))


@pytest.mark.parametrize("kernel", KERNELS)
def test_custom_ops_pass_opcheck(kernel):
    x, bias, seed = torch.randn(3, 8), torch.randn(8), torch.tensor([5])
    for arguments in ((x, bias, 0.0, None, kernel), (x, bias, 0.5, seed, kernel)):
        torch.library.opcheck(torch.ops.hsta_kernels.bias_gelu_forward, arguments)
        torch.library.opcheck(torch.ops.hsta_kernels.bias_gelu_backward, (x, *arguments))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": 1.0}, TypeError, "x must be a tensor"),
        ({"x": torch.zeros(3, 8, dtype=torch.int)}, TypeError, "x must be float32"),
        ({"bias": torch.zeros(7)}, ValueError, r"bias must have shape \(C,\)"),
        ({"bias": torch.zeros(8).half()}, TypeError, "bias must have the dtype of x"),
        ({"dropout_rate": 1.0}, ValueError, "dropout_rate must be at least 0 and less than 1"),
        ({"dropout_rate": 0.5, "seed": 3}, TypeError, "seed must be an int64 tensor"),
        ({"dropout_rate": 0.5, "seed": torch.zeros(2, dtype=torch.int64)}, ValueError, "seed must hold one number"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        bias_gelu(**({"x": torch.zeros(3, 8), "bias": torch.zeros(8)} | change))

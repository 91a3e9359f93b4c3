from __future__ import annotations

import pytest
import torch

from hsta_kernels import backend, backends
from hsta_kernels.ops import bias_gelu
from hsta_kernels.ops.bias_gelu.reference import BITS, random_numbers
from hsta_kernels.ops.philox import threshold
from tests.ops.parity import assert_parity, assert_same_bits, run

pytestmark = pytest.mark.usefixtures("poisoned_empty")

OPERATOR = backends.OPERATORS["bias_gelu"]
SEED = torch.tensor([77])
EXAMPLES = {
    "bias_gelu": (bias_gelu, {"x": (8, 9, 32), "bias": (32,)}),
    "bias_gelu_dropout": (
        lambda x, bias: bias_gelu(x, bias, 0.5, SEED.to(x.device)),
        {"x": (8, 9, 32), "bias": (32,)},
    ),
}
SHAPES = [(2, 17, 48), (9, 3), (5, 768), (3, 2, 4, 41), (70, 65), (7, 131), (40, 1), (0, 8)]


def arguments(shape, magnitude, dtype, device):
    """x and bias, and the incoming gradient."""
    x, bias, grad = (torch.randn(s, dtype=torch.float64) for s in (shape, shape[-1:], shape))
    x, bias, grad = (t.to(device, dtype) for t in (x * magnitude, bias * magnitude, grad))
    return {"x": x, "bias": bias}, [grad]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("magnitude", (1.0, 1e4, 1e-4))
def test_parity(shape, magnitude, dtype, kernel):
    assert_parity(bias_gelu, *arguments(shape, magnitude, dtype, kernel.device), kernel)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity_with_dropout(shape, dtype, kernel):
    """The same elements are dropped on every backend, in both passes."""
    seed = torch.tensor([-(2**40) - 5], device=kernel.device)

    def dropped(x, bias):
        return bias_gelu(x, bias, 0.3, seed)

    ours, _, exact = assert_parity(dropped, *arguments(shape, 1.0, dtype, kernel.device), kernel)
    for key in ours:
        rounded = (exact[key].abs() < 1e-6) & (exact[key] != 0)  # GELU's tail may become zero
        assert torch.equal((ours[key] == 0) & ~rounded, exact[key] == 0), key


def test_the_mask_where_float32_would_round_the_rate(kernel):
    """Float32 would round this rate to the next 1 / 2**16, and a random number of this seed lies in between."""
    rate = 58982.4999 / 2**BITS
    options = {"dropout_rate": rate, "seed": torch.tensor([8], device=kernel.device)}
    x, bias = torch.ones(84, 69, device=kernel.device), torch.zeros(69, device=kernel.device)
    numbers = random_numbers(84, 69, options["seed"])
    assert threshold(rate, BITS) == 58982 != threshold(float(torch.tensor(rate)), BITS)
    assert (numbers == 58982).any()
    ours, theirs = (bias_gelu(x, bias, backend=name, **options) for name in (kernel.name, "reference"))
    assert torch.equal(ours == 0, theirs == 0)


def test_strided_rows_and_gradients(kernel):
    """Slices and stride 0 give the bits of copies."""
    wide, bias = torch.randn(5, 100, device=kernel.device), torch.randn(32, device=kernel.device)
    one = torch.ones((), device=kernel.device).expand(5, 32)
    for x in (wide[:, 32:64], wide[:, 3:35], torch.randn(32, 5, device=kernel.device).T, wide[:1, :32].expand(5, 32)):
        strided = run(bias_gelu, {"x": x, "bias": bias}, kernel.name, [one])
        copied = run(bias_gelu, {"x": x.contiguous(), "bias": bias}, kernel.name, [one.contiguous()])
        assert_same_bits(strided, copied)


def test_error_of_the_tail(kernel):
    """gelu(x) = max(x, 0) - |x| Phi(-|x|): the second term's error, before the difference is rounded."""
    x = torch.cat([-torch.logspace(-6, 1.3, 100_003), -torch.linspace(0, 14, 100_003)])
    with backend(kernel.name):
        product = bias_gelu(x[None].to(kernel.device), torch.zeros_like(x, device=kernel.device))[0].cpu()
    exact = x.double() * torch.special.erfc(-x.double() / 2**0.5) / 2
    assert ((product.double() - exact).abs() <= -x * 2**-23).all()


def test_error_of_the_slope(kernel):
    """Phi(x) + x phi(x), on both sides of zero."""
    x = torch.linspace(-14, 14, 200_003)
    leaf = x[None].to(kernel.device).requires_grad_()
    with backend(kernel.name):
        (slope,) = torch.autograd.grad(bias_gelu(leaf, torch.zeros_like(leaf[0])).sum(), leaf)
    slope = slope[0].cpu()
    exact = torch.special.ndtr(x.double()) + x.double() * torch.exp(-(x.double() ** 2) / 2) / (2 * torch.pi) ** 0.5
    assert ((slope.double() - exact).abs() <= 2**-23).all()


def test_special_values(kernel):
    """Where the reference has NaN: at minus infinity, and at both infinities in the gradient."""
    x = torch.tensor([[float("inf"), -float("inf"), float("nan"), 0.0, 1e30, -1e30]])
    results = []
    for name, dtype in ((kernel.name, torch.float32), ("reference", torch.float64)):
        leaf = x.to(kernel.device, dtype).requires_grad_()
        with backend(name):
            out = bias_gelu(leaf, torch.zeros(6, dtype=dtype, device=kernel.device))
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        results.append([t.detach().float().cpu() for t in (out, grad)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_random_numbers_are_philox():
    """The answer that the generator's authors publish for counter and key zero (Random123, kat_vectors), in halves:
    6627e8d5 e169c58d bc57ac4c 9b00dbd8."""
    numbers = [f"{number:04x}" for number in random_numbers(1, 8, torch.tensor([0]))[0].tolist()]
    assert numbers == ["e8d5", "c58d", "ac4c", "dbd8", "6627", "e169", "bc57", "9b00"]


def test_halves_of_words_are_independent():
    """Of pairs of columns of one block, as many are dropped together as chance has it."""
    dropped = random_numbers(4000, 64, torch.tensor([11])).view(4000, 8, 8) < threshold(0.3, BITS)
    together = (dropped[..., :, None] & dropped[..., None, :]).double().mean((0, 1))
    off_diagonal = together[~torch.eye(8, dtype=torch.bool)]
    assert (off_diagonal - 0.09).abs().max() < 5 * (0.09 * 0.91 / 32000) ** 0.5


@pytest.mark.parametrize("rate", (2**-18, 1 - 2**-18))
def test_rates_that_16_bits_do_not_hold(rate, kernel):
    """The nearest one is taken, but never that of dropping all."""
    x, bias = torch.ones(64, 512, device=kernel.device), torch.zeros(512, device=kernel.device)
    out = bias_gelu(x, bias, rate, torch.tensor([3], device=kernel.device), backend=kernel.name)
    assert bool((out != 0).any()) and (rate > 0.5 or bool((out != 0).all()))


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


def test_reference_gradients_numerically():
    x, bias = torch.randn(3, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    arguments = (x.requires_grad_(), bias.requires_grad_(), 0.4, torch.tensor([11]))
    assert torch.autograd.gradcheck(bias_gelu, arguments)


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

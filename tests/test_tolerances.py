"""The error rule itself: it forgives what float32 cannot avoid, and no fault that a kernel may have."""

from __future__ import annotations

import pytest
import torch

from hsta_kernels.ops.add_layer_norm.reference import add_layer_norm
from hsta_kernels.ops.bias_gelu.reference import bias_gelu
from hsta_kernels.ops.space_time_attention.grid import Grid
from hsta_kernels.ops.space_time_attention.reference import space_time_attention
from tests.tolerances import ROUNDOFF, SMALLEST, assert_close_to_reference, nearby

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attention(qkv: torch.Tensor) -> torch.Tensor:
    """Over time: 3 frames of 5 patches and a prefix token."""
    return space_time_attention((qkv,), Grid(3, 5, "time", 1, qkv.shape[-1] ** -0.5))


def gelu_gradient(x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(bias_gelu(x, torch.zeros_like(x[0]), 0.0, None).sum(), x)[0]


def norm(x: torch.Tensor) -> torch.Tensor:
    return add_layer_norm(x, x, torch.ones_like(x[0]), torch.ones_like(x[0]), 1e-6, x.dtype)[0]


# A function, the shape of its input, and its magnitude.
CASES = {
    "attention": (attention, (2, 16, 3, 2, 16), 1.0),
    "one-hot attention": (attention, (2, 16, 3, 2, 16), 30.0),
    "uniform attention": (attention, (2, 16, 3, 2, 16), 1e-2),
    "gelu gradient": (gelu_gradient, (34, 48), 1.0),
    "saturated gelu gradient": (gelu_gradient, (34, 48), 1e4),
    "norm": (norm, (34, 48), 1.0),
}


def results(case: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """PyTorch's in the dtype, the exact one, and that of nearby inputs."""
    function, shape, magnitude = CASES[case]
    x = (torch.randn(shape, dtype=torch.float64) * magnitude).to(dtype)
    return function(x), function(x.double()), function(nearby(x))


def one_wrong_element(exact: torch.Tensor) -> torch.Tensor:
    """A tenth of the scale off, in one of 1024 or more."""
    wrong = exact.clone()
    wrong.view(-1)[37] += 0.1 * exact.abs().max()
    return wrong


def last_column_missing(exact: torch.Tensor) -> torch.Tensor:
    return exact.index_fill(-1, torch.tensor([exact.shape[-1] - 1]), 0.0)


FAULTS = {
    "one wrong element": one_wrong_element,
    "rows one place on": lambda exact: exact.roll(1, 0),
    "columns one place on": lambda exact: exact.roll(1, -1),
    "last column missing": last_column_missing,
    "a scale 2 % too large": lambda exact: exact * 1.02,
    "elements nobody wrote": lambda exact: exact.index_fill(-1, torch.tensor([3]), float("nan")),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_what_float32_cannot_tell_apart_passes(case, dtype):
    """Beside a PyTorch whose luck is perfect."""
    _, exact, near = results(case, dtype)
    for ours in (exact, near):
        assert_close_to_reference(ours.to(dtype), exact.to(dtype), exact, nearby64=near)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_do_not(fault, case, dtype):
    """Beside the error that PyTorch has in that dtype."""
    same, exact, near = results(case, dtype)
    with pytest.raises(AssertionError, match=r"exceeds|not finite"):
        assert_close_to_reference(FAULTS[fault](exact).to(dtype), same, exact, nearby64=near)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", (1.0, 1e-4))
def test_a_dropped_term_does_not(scale, dtype):
    """One of 588, in sums that cancel: the tolerance follows the terms, but one term stands out of it."""
    terms = (torch.randn(588, 48, dtype=torch.float64) * scale).to(dtype)
    exact, near = terms.double().sum(0), nearby(terms).sum(0)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_close_to_reference(terms[1:].double().sum(0).to(dtype), exact.to(dtype), exact, nearby64=near)


def test_a_float32_sum_that_cancels_is_as_exact_as_its_terms():
    """Beside a PyTorch that happened to be exact."""
    terms = torch.randn(512, 48)
    terms[-1] -= terms.double().sum(0).float()
    exact, near = terms.double().sum(0), nearby(terms).sum(0)
    ours = terms
    while len(ours) > 1:
        ours = ours[::2] + ours[1::2]
    assert_close_to_reference(ours[0], exact.float(), exact, nearby64=near)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_close_to_reference(ours[0], exact.float(), exact)


@pytest.mark.parametrize("case", CASES)
def test_a_calculation_in_bfloat16_instead_of_float32_does_not(case):
    same, exact, near = results(case, torch.float32)
    if torch.equal(exact.bfloat16().double(), exact):
        pytest.skip("the result is a bfloat16 number everywhere")
    with pytest.raises(AssertionError, match="exceeds"):
        assert_close_to_reference(exact.bfloat16().float(), same, exact, nearby64=near)


@pytest.mark.parametrize("case", [case for case in CASES if case != "saturated gelu gradient"])
def test_a_cast_that_cuts_digits_off_does_not(case):
    _, exact, near = results(case, torch.bfloat16)
    cut = (exact.float().view(torch.int32) & -0x10000).view(torch.float32).bfloat16()
    with pytest.raises(AssertionError, match="exceeds"):
        assert_close_to_reference(cut, exact.bfloat16(), exact, nearby64=near)


def test_scores_of_a_wrong_scale_do_not_pass():
    """sqrt(D + 1) for sqrt(D), at scores large enough for float32 to know their probabilities to three digits only."""
    qkv = torch.randn(2, 16, 3, 2, 64) * 50
    exact, near = attention(qkv.double()), attention(nearby(qkv))
    wrong = space_time_attention((qkv.double(),), Grid(3, 5, "time", 1, 65**-0.5)).float()
    with pytest.raises(AssertionError, match="exceeds"):
        assert_close_to_reference(wrong, attention(qkv), exact, nearby64=near)


def test_tails_are_known_as_well_as_the_scale():
    """4e-34 beside 1, bfloat16 both: PyTorch has it on one processor, and zero on another."""
    exact = torch.tensor([1.0, 0.0, -(2.0**-111)], dtype=torch.float64)
    theirs, ours = exact.bfloat16(), torch.tensor([1.0, 0.0, 0.0]).bfloat16()
    assert_close_to_reference(ours, theirs, exact)
    with pytest.raises(AssertionError, match="exceeds"):  # the same beside nothing larger
        assert_close_to_reference(ours[1:], theirs[1:], exact[1:])
    ours[1] = 3 * ROUNDOFF
    with pytest.raises(AssertionError, match="exceeds"):
        assert_close_to_reference(ours, theirs, exact)


def test_below_the_smallest_normal_number_a_kernel_may_flush():
    exact = torch.full((3,), SMALLEST, dtype=torch.float64)
    zero = torch.zeros(3)
    assert_close_to_reference(zero, exact.float(), exact)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_close_to_reference(zero, 3 * exact.float(), 3 * exact)

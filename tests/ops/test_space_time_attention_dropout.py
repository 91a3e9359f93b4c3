"""Dropout of attention's probabilities: every implementation's mask is that of the definition."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch

from hsta_kernels import backends
from hsta_kernels.ops import space_time_attention
from hsta_kernels.ops.space_time_attention.grid import TOKEN_ORDERS
from tests.kernels import SIMULATED, Kernel
from tests.ops.attention import WHO_SEES_WHOM, attention, looped, of_three, random
from tests.ops.parity import assert_parity, assert_same_bits, run

pytestmark = pytest.mark.usefixtures("poisoned_empty")

OPERATOR = backends.OPERATORS["space_time_attention"]
SEED = 123456789123456789
# Groups in whole tiles and not, of more than a tile's lanes, of more than a vector, large, and of several blocks.
GRIDS = ((3, 4), (2, 9), (9, 5), (17, 3), (2, 67))
# axis, grid, prefix, prefix_sees, token_order, dtype, packed; tails alone, whole tiles, and both.
FEW = [
    ("time", (3, 7), 0, "all", "time_major", torch.float32, True),
    ("time", (8, 9), 1, "all", "patch_major", torch.float16, True),
    ("time", (3, 12), 2, "all", "time_major", torch.float32, False),
    ("time", (16, 3), 1, "none", "time_major", torch.bfloat16, True),
    ("time", (40, 2), 2, "all", "time_major", torch.float32, True),
    ("space", (2, 17), 0, "all", "patch_major", torch.float32, False),
    ("space", (2, 70), 1, "all", "time_major", torch.bfloat16, True),
    ("space", (3, 6), 2, "all", "time_major", torch.float32, True),
    ("space", (2, 70), 2, "all", "patch_major", torch.float16, True),
    ("space", (3, 35), 2, "frame_mean", "time_major", torch.float32, True),
    ("space", (2, 9), 1, "none", "time_major", torch.float32, True),
    ("joint", (2, 35), 1, "all", "time_major", torch.float32, True),
    ("joint", (2, 67), 2, "none", "time_major", torch.float16, False),
]
MANY = [
    (axis, grid, prefix, prefix_sees, token_order, dtype, True)
    for (axis, prefix_sees), grid, prefix, token_order, dtype in itertools.product(
        WHO_SEES_WHOM, GRIDS, (0, 1, 2), TOKEN_ORDERS, (torch.float32, torch.bfloat16)
    )
]


@pytest.fixture
def dropping(kernel: Kernel) -> Kernel:
    if kernel.name != "cpu":
        pytest.skip("the CPU kernels drop probabilities")
    return kernel


def dropped(grid, axis: str, num_prefix_tokens: int = 1, rate: float = 0.25, seed: int = SEED, **options):
    return partial(attention(grid, axis, num_prefix_tokens), dropout_rate=rate, seed=torch.tensor(seed), **options)


@pytest.mark.parametrize(("seen_along", "prefix_sees"), WHO_SEES_WHOM)
@pytest.mark.parametrize("prefix", (0, 2))
@pytest.mark.parametrize("token_order", TOKEN_ORDERS)
def test_reference_drops_what_the_definition_says(seen_along, prefix_sees, prefix, token_order):
    qkv = torch.randn(2, prefix + 12, 3, 2, 8, dtype=torch.float64)
    options = {"prefix": prefix_sees, "token_order": token_order, "dropout_rate": 0.25, "seed": torch.tensor(1 << 40)}
    out = space_time_attention(qkv, (3, 4), seen_along, prefix, backend="reference", **options)
    expected = looped(qkv, (3, 4), seen_along, prefix, prefix_sees, token_order, 0.25, 1 << 40)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("axis", "grid", "prefix", "prefix_sees", "token_order", "of", "packed"),
    FEW if SIMULATED else FEW + MANY,
    indirect=["axis"],
    ids=str,
)
def test_parity(axis, grid, prefix, prefix_sees, token_order, of, packed, kernel):
    """The mask is the reference's, so results are as near to it as those without dropout."""
    if kernel.simulated and of == torch.bfloat16:
        of = torch.float16  # Triton's interpreter computes bfloat16 wrongly
    seed, rate = torch.tensor([-(1 << 40) - 7], device=kernel.device), 0.3 if packed else 0.6
    options = {"prefix": prefix_sees, "token_order": token_order, "dropout_rate": rate, "seed": seed}
    function = partial(attention(grid, axis, prefix), **options)
    qkv = torch.randn(2, prefix + grid[0] * grid[1], 3, 2, 16 if SIMULATED else 24).to(kernel.device, of)
    tensors = {"qkv": qkv} if packed else dict(zip("qkv", qkv.clone().unbind(2), strict=True))
    case = f"{axis} {grid} {prefix_sees} P={prefix} {token_order}"
    grad = torch.randn_like(qkv[:, :, 0])
    assert_parity(function if packed else of_three(function), tensors, [grad], kernel, case=case)


def test_dropout_of_three_tensors_and_of_any_thread_count_and_batch(axis, dtype, dropping):
    """The bits of the packed one in one thread; a sample's mask depends on its place in the batch."""
    grid, threads = (3, 37), torch.get_num_threads()
    qkv = torch.randn(4, 1 + grid[0] * grid[1], 3, 2, 16).to(dtype)
    try:
        torch.set_num_threads(1)
        expected = run(dropped(grid, axis), {"qkv": qkv}, dropping.name)
        torch.set_num_threads(2)
        assert_same_bits(run(dropped(grid, axis), {"qkv": qkv}, dropping.name), expected)
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(
        {"out 0": run(dropped(grid, axis), {"qkv": qkv[:2]}, dropping.name)["out 0"]}, {"out 0": expected["out 0"][:2]}
    )
    parts = dict(zip("qkv", qkv.unbind(2), strict=True))
    ours = run(of_three(dropped(grid, axis)), parts, dropping.name)
    assert torch.equal(ours["out 0"], expected["out 0"])
    assert torch.equal(torch.stack([ours[f"grad of {name}"] for name in "qkv"], 2), expected["grad of qkv"])


def test_a_rate_of_zero_is_no_dropout_and_another_seed_another_mask(axis, dropping):
    qkv, grid = random((2, 16, 3, 2, 16), dropping), (3, 5)
    plain = run(attention(grid, axis), qkv, dropping.name)
    assert_same_bits(run(dropped(grid, axis, rate=0.0), qkv, dropping.name), plain)
    one, same, other, high = (
        run(dropped(grid, axis, seed=seed), qkv, dropping.name)["out 0"] for seed in (1, 1, 2, 1 + (1 << 32))
    )
    assert torch.equal(one, same)
    assert not any(torch.equal(one, x) for x in (plain["out 0"], other, high))


@pytest.mark.parametrize("frames", (3, 40))
def test_dropout_keeps_the_share_that_it_says(frames, dropping):
    """Of uniform probabilities and values of one, an output is the share kept, by 1 - rate."""
    qkv = torch.zeros(4, 50 * frames, 3, 8, 8)
    qkv[:, :, 2] = 1
    out = dropped((frames, 50), "time", 0, rate=0.3)(qkv, backend=dropping.name)
    kept, count = (out * 0.7 * frames).sum(dtype=torch.double) / 8, 4 * 8 * 50 * frames**2
    assert abs(kept / count - 0.7) < 4 * math.sqrt(0.21 / count)


def test_gradients_of_gradients_have_the_mask_of_dropout(axis, dropping):
    """The second derivative, by the formula, belongs to the kernel's first."""
    qkv = torch.randn(1, 16, 3, 2, 8)

    def penalty_gradient(name: str, dtype: torch.dtype) -> torch.Tensor:
        x = qkv.to(dtype).requires_grad_()
        out = dropped((3, 5), axis)(x, backend=name)
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    ours, exact = penalty_gradient(dropping.name, torch.float32), penalty_gradient("reference", torch.double)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


def test_values_of_infinity_behind_dropout(axis, dropping):
    """Also of prefix queries, whose masks are spread over the groups."""
    qkv = torch.rand(2, 1 + 3 * 9, 3, 1, 16)
    qkv[0, 5, 2, 0, :4] = float("inf")
    with torch.no_grad():
        ours, exact = (
            dropped((3, 9), axis)(x, backend=name) for x, name in ((qkv, "cpu"), (qkv.double(), "reference"))
        )
    torch.testing.assert_close(ours.double(), exact, equal_nan=True, rtol=1e-4, atol=1e-5)

"""Rotary position embedding of q and k: every implementation's is the map of the definition, and its transpose."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from hsta_kernels import backends
from hsta_kernels.ops import space_time_attention
from hsta_kernels.ops.space_time_attention.grid import TOKEN_ORDERS, Grid
from hsta_kernels.ops.space_time_attention.rotary import PAIRS
from tests.kernels import LACKING, Kernel
from tests.ops.attention import WHO_SEES_WHOM, attention, check_ops, looped, of_three
from tests.ops.parity import assert_parity, assert_same_bits, run

pytestmark = pytest.mark.usefixtures("poisoned_empty")

OPERATOR = backends.OPERATORS["space_time_attention"]
# Groups in whole tiles and not, of more than a vector, large, and of several blocks; each with a head_dim: whole
# vectors, vectors and a tail, a tail alone, halves that begin within a vector.
GRIDS = (((3, 4), 32), ((2, 9), 24), ((9, 5), 64), ((17, 3), 12), ((2, 67), 20))
CASES = [
    (axis, grid, head_dim, prefix, prefix_sees, token_order, dtype)
    for (axis, prefix_sees), (grid, head_dim), prefix, token_order, dtype in itertools.product(
        WHO_SEES_WHOM, GRIDS, (0, 1, 2), TOKEN_ORDERS, (torch.float32, torch.bfloat16)
    )
]


@pytest.fixture
def rotating(kernel: Kernel) -> Iterator[Kernel]:
    """Kernels that rotate; tensors of the test are made where theirs are."""
    if "rotary" in LACKING[kernel.name]:
        pytest.skip("these kernels rotate nothing, as test_what_a_backend_has_not_it_says shows")
    with torch.device(kernel.device):
        yield kernel


def numbers(length: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables that are no rotation, and leave rows of about the same size."""
    return torch.randn(length, head_dim) / 2, torch.randn(length, head_dim) / 2


def angles(length: int, head_dim: int, pairs: str, prefix: int = 0) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """RoFormer's, a half of `head_dim` of each token, and their tables; the prefix stays where it is."""
    place = (torch.arange(length, dtype=torch.float64) - prefix + 1).clamp(min=0)
    angle = place[:, None] * 10000 ** (-2 * torch.arange(head_dim // 2) / head_dim)
    of_channels = angle.repeat_interleave(2, 1) if pairs == "interleaved" else torch.cat([angle, angle], 1)
    return angle, (of_channels.cos().float(), of_channels.sin().float())


def rotated_by(rotary, pairs: str, **options):
    return partial(attention(**options), rotary=rotary, rotary_pairs=pairs)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize(("seen_along", "prefix_sees"), WHO_SEES_WHOM)
@pytest.mark.parametrize("token_order", TOKEN_ORDERS)
def test_reference_multiplies_complex_numbers(seen_along, prefix_sees, token_order, pairs):
    qkv, prefix = torch.randn(2, 2 + 12, 3, 2, 8, dtype=torch.float64), 2
    angle, rotary = angles(14, 8, pairs, prefix)
    expected = qkv.clone()
    for part, i in itertools.product((0, 1), range(4)):
        first, second = (2 * i, 2 * i + 1) if pairs == "interleaved" else (i, i + 4)
        turned = torch.complex(qkv[:, :, part, :, first], qkv[:, :, part, :, second]) * torch.exp(
            1j * angle[:, i, None]
        )
        expected[:, :, part, :, first], expected[:, :, part, :, second] = turned.real, turned.imag
    out = space_time_attention(
        qkv, (3, 4), seen_along, prefix, backend="reference", prefix=prefix_sees, token_order=token_order,
        rotary=rotary, rotary_pairs=pairs,
    )  # fmt: skip
    expected = looped(expected, (3, 4), seen_along, prefix, prefix_sees, token_order)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)  # the tables are float32


@pytest.mark.parametrize("pairs", PAIRS)
def test_reference_reads_the_tables_as_they_are(pairs):
    """Two angles in a pair, channel by channel; and twice differentiable."""
    qkv, rotary = torch.randn(2, 7, 3, 1, 6, dtype=torch.float64), numbers(7, 6)
    expected = qkv.clone()
    for part, d in itertools.product((0, 1), range(6)):
        first = d % 2 == 0 if pairs == "interleaved" else d < 3
        partner = d + (1 if pairs == "interleaved" else 3) * (1 if first else -1)
        x, other = qkv[:, :, part, :, d], qkv[:, :, part, :, partner] * (-1 if first else 1)
        expected[:, :, part, :, d] = x * rotary[0][:, None, d] + other * rotary[1][:, None, d]
    attend = partial(space_time_attention, grid_size=(2, 3), axis="time", backend="reference")
    rotate = partial(attend, rotary=rotary, rotary_pairs=pairs)
    torch.testing.assert_close(rotate(qkv), attend(expected))
    assert torch.autograd.gradgradcheck(rotate, qkv[:1].clone().requires_grad_())


@pytest.mark.parametrize(("case", "number"), [(case, i) for i, case in enumerate(CASES)], ids=str)
def test_parity(case, number, rotating):
    """Every second case has three tensors, every third the other pairs."""
    axis, grid, head_dim, prefix, prefix_sees, token_order, dtype = case
    if rotating.name == "triton" and (prefix != 2 or head_dim not in (24, 32)):
        pytest.skip("rows are rotated before attention, of which test_space_time_attention.py has all sizes")
    dtype = rotating.half if dtype == torch.bfloat16 else dtype
    pairs, packed = PAIRS[number % 3 == 0], number // 2 % 2 == 0
    length = prefix + grid[0] * grid[1]
    function = rotated_by(numbers(length, head_dim), pairs, grid=grid, axis=axis, prefix=prefix)
    function = partial(function, prefix=prefix_sees, token_order=token_order)
    qkv = torch.randn(2, length, 3, 2, head_dim).to(dtype)
    tensors = {"qkv": qkv} if packed else dict(zip("qkv", qkv.clone().unbind(2), strict=True))
    function = function if packed else of_three(function)
    assert_parity(function, tensors, [torch.randn_like(qkv[:, :, 0])], rotating, case=f"{case} {pairs}")


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("head_dim", (2, 10, 16, 40, 128))
def test_parity_of_rotations(head_dim, pairs, axis, dtype, rotating):
    """With dropout, heads that share keys, clips of different lengths, tables with strides."""
    if rotating.simulated and head_dim != 10:
        pytest.skip("what simulates a GPU has time for one of them")
    grid, prefix = (3, 3) if rotating.simulated else (3, 11), 1
    length = prefix + grid[0] * grid[1]
    cos, sin = angles(length, head_dim, pairs, prefix)[1]
    rotary = cos.T.contiguous().T, torch.cat([sin, sin], 1)[:, :head_dim]
    attend = partial(
        rotated_by(rotary, pairs, grid=grid, axis=axis, prefix=prefix), dropout_rate=0.25, seed=torch.tensor(5),
        valid_frames=(3, 2),
    )  # fmt: skip
    q, k, v = torch.randn(2, length, 4, head_dim), *torch.randn(2, 2, length, 2, head_dim)
    tensors = {key: tensor.to(dtype) for key, tensor in zip("qkv", (q, k, v), strict=True)}
    assert_parity(of_three(attend), tensors, [torch.randn(q.shape)], rotating)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("token_order", TOKEN_ORDERS)
def test_a_shorter_clip_has_the_rows_of_its_tokens(pairs, token_order, rotating):
    frames, patches, valid = 4, 3, (2, 4)
    place = torch.arange(frames * patches)
    frame = place // patches if token_order == "time_major" else place % frames
    qkv, (cos, sin) = torch.randn(2, 13, 3, 2, 16), numbers(13, 16)
    attend = partial(
        space_time_attention, axis="time", token_order=token_order, rotary_pairs=pairs, backend=rotating.name
    )
    out = attend(qkv, (frames, patches), valid_frames=valid, rotary=(cos, sin))
    for sample, f in enumerate(valid):
        mine = torch.cat([torch.tensor([True]), frame < f])
        alone = attend(qkv[sample : sample + 1, mine], (f, patches), rotary=(cos[mine], sin[mine]))
        assert torch.equal(out[sample : sample + 1, mine], alone)
        assert not out[sample, ~mine].any()


def test_tables_of_one_and_zero_leave_rows_alone(axis, dtype, rotating):
    qkv = {"qkv": torch.randn(2, 1 + 3 * 9, 3, 2, 24).to(dtype)}
    rotary = torch.ones(28, 24), torch.zeros(28, 24)
    ours = run(rotated_by(rotary, "half", grid=(3, 9), axis=axis), qkv, rotating.name)
    expected = run(attention((3, 9), axis), qkv, rotating.name)
    for key, result in ours.items():
        torch.testing.assert_close(result, expected[key])


def test_the_same_bits_of_three_tensors_of_any_thread_count_and_batch(axis, dtype, rotating):
    grid, threads = (2, 3) if rotating.simulated else (3, 37), torch.get_num_threads()
    length = 1 + grid[0] * grid[1]
    attend = rotated_by(numbers(length, 16), "interleaved", grid=grid, axis=axis)
    qkv = torch.randn(4, length, 3, 2, 16).to(dtype)
    try:
        torch.set_num_threads(1)
        expected = run(attend, {"qkv": qkv}, rotating.name)
        torch.set_num_threads(2)
        assert_same_bits(run(attend, {"qkv": qkv}, rotating.name), expected)
    finally:
        torch.set_num_threads(threads)
    some = run(attend, {"qkv": qkv[1:3]}, rotating.name)
    assert_same_bits(some, {key: result[1:3] for key, result in expected.items()})
    ours = run(of_three(attend), dict(zip("qkv", qkv.unbind(2), strict=True)), rotating.name)
    assert torch.equal(ours["out 0"], expected["out 0"])
    assert torch.equal(torch.stack([ours[f"grad of {name}"] for name in "qkv"], 2), expected["grad of qkv"])


@pytest.mark.parametrize("special", (float("nan"), float("inf")))
@pytest.mark.parametrize("frames", (3, 9, 40))
def test_special_values_are_seen(special, frames, axis, rotating):
    """In q, k or v of a prefix token or a patch, and in a table."""
    if rotating.name == "triton":
        pytest.skip("tests/triton/test_special_values.py says where they get on a GPU")
    length = 1 + frames * 5
    qkv, rotary = torch.rand(8, length, 3, 1, 16), numbers(length, 16)
    for sample, (part, token) in enumerate(itertools.product(range(3), (0, 4))):
        qkv[sample, token, part, 0, 3] = special
    broken = rotary[0].index_fill(0, torch.tensor([4]), special), rotary[1]
    for x, tables in ((qkv, rotary), (qkv[-1:], broken)):
        attend = rotated_by(tables, "interleaved", grid=(frames, 5), axis=axis)
        grads = [torch.randn(x.shape[0], length, 1, 16)]
        ours, exact = (
            run(attend, {"qkv": t}, name, grads) for t, name in ((x, rotating.name), (x.double(), "reference"))
        )
        for key in ours:
            torch.testing.assert_close(ours[key].double(), exact[key], equal_nan=True, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pairs", PAIRS)
def test_gradients_of_gradients(pairs, axis, rotating):
    """The second derivative, by the formula, belongs to the kernel's first."""
    qkv, rotary = torch.randn(1, 16, 3, 2, 8), numbers(16, 8)

    def penalty_gradient(name: str, dtype: torch.dtype) -> torch.Tensor:
        x = qkv.to(dtype).requires_grad_()
        out = rotated_by(rotary, pairs, grid=(3, 5), axis=axis)(x, backend=name)
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    ours, exact = penalty_gradient(rotating.name, torch.float32), penalty_gradient("reference", torch.double)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-3)


def test_autocast_leaves_the_tables_alone(axis, rotating):
    qkv, rotary = torch.randn(2, 16, 3, 2, 24), numbers(16, 24)
    attend = rotated_by(rotary, "half", grid=(3, 5), axis=axis)
    with torch.autocast(rotating.device, dtype=rotating.half):
        out = attend(qkv, backend=rotating.name)
    assert torch.equal(out, attend(qkv.to(rotating.half), backend=rotating.name))


def test_transforms_see_the_reference(rotating):
    """Of the rows and of the tables, which have tangents and batches though no gradients."""
    qkv, (cos, sin) = torch.randn(3, 2, 7, 3, 1, 8), numbers(7, 8)

    def attend(qkv, cos, sin):
        return space_time_attention(qkv, (2, 3), "time", rotary=(cos, sin))

    expected = torch.stack([attend(x, cos * i, sin) for i, x in enumerate(qkv)])
    many = torch.stack([cos * i for i in range(3)])
    torch.testing.assert_close(torch.func.vmap(attend, (0, 0, None))(qkv, many, sin), expected)
    step, other = 1e-3, torch.randn(7, 8)
    _, tangent = torch.func.jvp(lambda c: attend(qkv[0].double(), c, sin), (cos,), (other,))
    above, below = (attend(qkv[0].double(), cos + sign * step * other, sin) for sign in (1, -1))
    torch.testing.assert_close(tangent, (above - below) / (2 * step), rtol=1e-2, atol=1e-3)


def test_the_compiler_sees_one_operator(rotating):
    torch._dynamo.reset()
    rotary = numbers(13, 16)
    attend = rotated_by(rotary, "half", grid=(3, 4), axis="time")
    qkv = torch.randn(2, 13, 3, 2, 16, requires_grad=True)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(function(qkv).square().sum(), qkv)[0] for function in (attend, compiled)]
    assert torch.equal(*grads)
    for valid in (None, [3, 1]):
        grid = Grid(3, 4, "time", 1, 0.25, rotary_pairs="half", valid_frames=valid)
        check_ops(qkv.detach(), grid, rotating.name, rotary=rotary)


@pytest.mark.parametrize(
    ("rotary", "options", "message"),
    [
        (torch.ones(13, 8), {}, r"rotary must be two tensors, cos and sin, each \(L, D\); got Tensor"),
        ((torch.ones(13, 8),), {}, "rotary must be two tensors.* got 1 tensors"),
        ((torch.ones(13, 8), 1.0), {}, "sin of rotary must be a tensor.* got float"),
        ((torch.ones(13, 8), torch.ones(13, 4)), {}, r"sin of rotary must have shape \(L, D\) of qkv = \(13, 8\)"),
        ((torch.ones(1, 13, 8), torch.ones(13, 8)), {}, r"cos of rotary must have shape \(L, D\); got \(1, 13, 8\)"),
        ((torch.ones(12, 8), torch.ones(13, 8)), {}, r"cos of rotary must have shape .* got \(12, 8\)"),
        ((torch.ones(13, 8), torch.ones(13, 8).double()), {}, "sin of rotary must be float32; got torch.float64"),
        ((torch.ones(13, 8, dtype=torch.int64),) * 2, {}, "cos of rotary must be float32.* got torch.int64"),
        ((torch.ones(13, 8), torch.ones(13, 8, device="meta")), {}, "sin of rotary must be on the device of qkv, cpu"),
        ((torch.ones(13, 8), torch.ones(13, 8).to_sparse()), {}, "sin of rotary must be a dense tensor"),
        ((torch.ones(13, 8, requires_grad=True), torch.ones(13, 8)), {}, "cos of rotary must not require a gradient"),
        ((torch.ones(13, 5),) * 2, {"head_dim": 5}, "rotary .* must have an even head_dim D; got 5"),
        (
            (torch.ones(13, 8),) * 2,
            {"rotary_pairs": "full"},
            "rotary_pairs must be 'interleaved' or 'half'; got 'full'",
        ),
    ],
)
def test_tables_that_are_none(rotary, options, message):
    qkv = torch.randn(2, 13, 3, 2, options.pop("head_dim", 8))
    with pytest.raises((TypeError, ValueError), match=message):
        space_time_attention(qkv, (3, 4), "time", rotary=rotary, **options)

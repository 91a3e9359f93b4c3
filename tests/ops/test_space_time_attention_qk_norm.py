"""Norms of q and k: every implementation's are PyTorch's before the plain operator, and so are their gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from hsta_kernels import backends
from hsta_kernels.ops import QKNorm, space_time_attention
from hsta_kernels.ops.space_time_attention.grid import TOKEN_ORDERS, Grid
from hsta_kernels.ops.space_time_attention.qk_norm import KINDS
from hsta_kernels.ops.space_time_attention.rotary import PAIRS
from tests.kernels import LACKING, Kernel
from tests.ops.attention import WHO_SEES_WHOM, check_ops
from tests.ops.parity import assert_parity, assert_same_bits, run

pytestmark = pytest.mark.usefixtures("poisoned_empty")

OPERATOR = backends.OPERATORS["space_time_attention"]
# Groups in whole tiles and not, of more than a vector, large, and of several blocks; each with a head_dim: whole
# vectors, vectors and a tail, a tail alone.
GRIDS = (((3, 4), 32), ((2, 9), 24), ((9, 5), 64), ((17, 3), 12), ((2, 67), 20))
CASES = [
    (axis, grid, head_dim, prefix, prefix_sees, kind, dtype)
    for (axis, prefix_sees), (grid, head_dim), prefix, kind, dtype in itertools.product(
        WHO_SEES_WHOM, GRIDS, (0, 1, 2), KINDS, (torch.float32, torch.bfloat16)
    )
]
AFFINE = {"layer": ("q_weight", "k_weight", "q_bias", "k_bias"), "rms": ("q_weight", "k_weight")}


@pytest.fixture
def normalizing(kernel: Kernel) -> Iterator[Kernel]:
    """Kernels that normalize; tensors of the test are made where theirs are."""
    if "qk_norm" in LACKING[kernel.name]:
        pytest.skip("these kernels normalize nothing, as test_what_a_backend_has_not_it_says shows")
    with torch.device(kernel.device):
        yield kernel


def affine(kind: str, head_dim: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Weights near one and biases near zero."""
    return {name: torch.randn(head_dim, dtype=dtype) / 4 + ("weight" in name) for name in AFFINE[kind]}


def normalized_by(kind: str, eps: float = 1e-6, **options) -> Callable[..., torch.Tensor]:
    """Attention as a function of packed rows, or of q, k and v, and of the norm's weights and biases, by name."""

    def function(qkv=None, q=None, k=None, v=None, backend=None, **parameters):
        rows = (q, k, v) if qkv is None else qkv
        return space_time_attention(rows, **options, backend=backend, qk_norm=QKNorm(kind, eps=eps, **parameters))

    return function


def assert_normalized(function, tensors, grads, kernel: Kernel, case: object = "") -> tuple:
    """Parity. A bias of keys adds the same to all scores of a query where nothing is rotated: its gradient is zero, of
    which arithmetic leaves rounding errors that nothing can be compared with, so it is a constant here."""
    fixed = {"k_bias": tensors["k_bias"]} if "k_bias" in tensors else {}
    tensors = {key: tensor for key, tensor in tensors.items() if key not in fixed}
    return assert_parity(partial(function, **fixed), tensors, grads, kernel, case=case)


def by_pytorch(kind: str, q, k, v, eps: float = 1e-6, *, q_weight=None, k_weight=None, q_bias=None, k_bias=None):
    shape = q.shape[-1:]
    if kind == "layer":
        return F.layer_norm(q, shape, q_weight, q_bias, eps), F.layer_norm(k, shape, k_weight, k_bias, eps), v
    return F.rms_norm(q, shape, q_weight, eps), F.rms_norm(k, shape, k_weight, eps), v


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("seen_along", "prefix_sees"), WHO_SEES_WHOM)
@pytest.mark.parametrize("with_affine", (True, False))
def test_reference_is_the_norm_of_pytorch_and_the_plain_operator(seen_along, prefix_sees, kind, with_affine):
    q, k, v = torch.randn(3, 2, 14, 2, 8, dtype=torch.float64).unbind(0)
    tensors = affine(kind, 8, torch.float64) if with_affine else {}
    leaves = [x.requires_grad_() for x in (q, k, v, *tensors.values())]
    attend = partial(
        space_time_attention, grid_size=(3, 4), axis=seen_along, num_prefix_tokens=2, backend="reference",
        prefix=prefix_sees,
    )  # fmt: skip
    out = attend((3 * q, k / 5, v), qk_norm=QKNorm(kind, eps=0.1, **tensors))
    expected = attend(by_pytorch(kind, 3 * q, k / 5, v, 0.1, **tensors))
    torch.testing.assert_close(out, expected)
    gradients = (torch.autograd.grad(result.square().sum(), leaves) for result in (out, expected))
    for grad, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(grad, exact)


@pytest.mark.parametrize("pairs", PAIRS)
def test_rotation_comes_after_the_norm(pairs):
    qkv, rotary = torch.randn(2, 7, 3, 2, 8, dtype=torch.float64), torch.randn(2, 7, 8).unbind(0)
    tensors = affine("layer", 8, torch.float64)
    attend = partial(
        space_time_attention, grid_size=(2, 3), axis="time", backend="reference", rotary=rotary, rotary_pairs=pairs
    )
    out = attend(qkv, qk_norm=QKNorm("layer", **tensors))
    torch.testing.assert_close(out, attend(by_pytorch("layer", *qkv.unbind(2), **tensors)))


@pytest.mark.parametrize("kind", KINDS)
def test_reference_is_twice_differentiable(kind):
    tensors = affine(kind, 4, torch.float64)

    def attend(qkv, *parameters):
        norm = QKNorm(kind, **dict(zip(tensors, parameters, strict=True)))
        return space_time_attention(qkv, (2, 2), "time", backend="reference", qk_norm=norm)

    leaves = torch.randn(1, 5, 3, 1, 4, dtype=torch.float64), *tensors.values()
    assert torch.autograd.gradgradcheck(attend, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize(("case", "number"), [(case, i) for i, case in enumerate(CASES)], ids=str)
def test_parity(case, number, normalizing):
    """Every second case has three tensors, every third no weights, every fourth is rotated."""
    axis, grid, head_dim, prefix, prefix_sees, kind, dtype = case
    if normalizing.name == "triton" and (prefix != 2 or head_dim != 24):
        pytest.skip("rows are normalized before attention, of which test_space_time_attention.py has all sizes")
    dtype = normalizing.half if dtype == torch.bfloat16 else dtype
    length, three = prefix + grid[0] * grid[1], number // 2 % 2 == 1
    options = {"grid_size": grid, "axis": axis, "num_prefix_tokens": prefix, "prefix": prefix_sees}
    options["token_order"] = TOKEN_ORDERS[number // 12 % 2]
    if number // 4 % 4 == 0:
        options |= {"rotary": (torch.randn(2, length, head_dim) / 2).unbind(0), "rotary_pairs": PAIRS[number % 2]}
    weights = {} if number % 3 == 0 else affine(kind, head_dim)
    qkv = torch.randn(2, length, 3, 2, head_dim).to(dtype)
    rows = dict(zip("qkv", qkv.clone().unbind(2), strict=True)) if three else {"qkv": qkv}

    function = normalized_by(kind, **options)
    assert_alike = assert_parity if "rotary" in options else assert_normalized
    assert_alike(function, rows | weights, [torch.randn_like(qkv[:, :, 0])], normalizing, case=f"{case} {options}")


def test_a_bias_of_keys_changes_nothing_but_rotated(axis, normalizing):
    tensors = {"qkv": torch.randn(2, 28, 3, 2, 24)} | affine("layer", 24)
    attend = partial(normalized_by, "layer", grid_size=(3, 9), axis=axis)
    ours = run(attend(), tensors, normalizing.name)
    without = run(attend(), {key: tensor for key, tensor in tensors.items() if key != "k_bias"}, normalizing.name)
    for key, result in without.items():
        torch.testing.assert_close(ours[key], result, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours["grad of k_bias"], torch.zeros(24), rtol=0, atol=1e-5)
    rotary = (torch.randn(2, 28, 24) / 2).unbind(0)
    assert run(attend(rotary=rotary), tensors, normalizing.name)["grad of k_bias"].abs().min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_dim", (10, 37, 128))
def test_parity_of_everything_at_once(head_dim, kind, axis, dtype, normalizing):
    """With dropout, heads that share keys, clips of different lengths; one weight or bias alone."""
    if normalizing.simulated and head_dim != 37:
        pytest.skip("what simulates a GPU has time for one of them")
    patches = 3 if normalizing.simulated else 11
    function = normalized_by(
        kind, grid_size=(3, patches), axis=axis, dropout_rate=0.25, seed=torch.tensor(5), valid_frames=(3, 2)
    )
    length = 1 + 3 * patches
    q, k, v = torch.randn(2, length, 4, head_dim), *torch.randn(2, 2, length, 2, head_dim)
    tensors = {key: tensor.to(dtype) for key, tensor in zip("qkv", (q, k, v), strict=True)}
    parameter = AFFINE[kind][head_dim % (3 if kind == "layer" else 2)]
    tensors[parameter] = affine(kind, head_dim)[parameter]
    assert_normalized(function, tensors, [torch.randn(q.shape)], normalizing)


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows(kind, axis, normalizing):
    """Of which the gradients of weights are long sums, of several programs' shares too."""
    grid = (4, 40) if normalizing.simulated else (12, 130)
    length = 1 + grid[0] * grid[1]
    function = normalized_by(kind, grid_size=grid, axis=axis)
    tensors = {"qkv": torch.randn(2, length, 3, 1, 16)} | affine(kind, 16)
    assert_normalized(function, tensors, [torch.randn(2, length, 1, 16)], normalizing)


@pytest.mark.parametrize("size", (1e-3, 1e6, 1e15))
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_size(kind, size, dtype, normalizing):
    """Also around a mean that is far from zero."""
    if dtype == torch.float16 and not 1e-3 <= size <= 1e3:
        size = 100.0
    qkv = size * (torch.randn(2, 13, 3, 2, 24) + 3)
    function = normalized_by(kind, grid_size=(3, 4), axis="time")
    tensors = {"qkv": torch.cat([qkv[:, :, :2], torch.randn(2, 13, 1, 2, 24)], 2).to(dtype)} | affine(kind, 24)
    assert_normalized(function, tensors, [torch.randn(2, 13, 2, 24)], normalizing)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", (3, 9, 40))
def test_a_row_of_zeros_is_the_bias(kind, frames, axis, normalizing):
    """By eps. Every element of the row counts as 1 / sqrt(eps) of itself, which its gradient shows."""
    if normalizing.simulated and frames > 3:
        pytest.skip("what simulates a GPU has time for short clips")
    qkv = torch.randn(2, 1 + frames * 5, 3, 1, 16)
    qkv[0, 0] = qkv[1, 3] = 0
    function = normalized_by(kind, 1e-4, grid_size=(frames, 5), axis=axis)
    ours, _, exact = assert_normalized(
        function, {"qkv": qkv} | affine(kind, 16), [torch.randn(qkv[:, :, 0].shape)], normalizing
    )
    assert exact["grad of qkv"][0, 0, :2].abs().max() > 1e-3
    torch.testing.assert_close(ours["grad of qkv"][0, 0].double(), exact["grad of qkv"][0, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_one_and_biases_of_zero_are_as_none(kind, axis, dtype, normalizing):
    qkv, ones = {"qkv": torch.randn(2, 28, 3, 2, 24).to(dtype)}, torch.ones(24)
    given = {name: ones if "weight" in name else 0 * ones for name in AFFINE[kind]}
    function = normalized_by(kind, grid_size=(3, 9), axis=axis)
    ours = run(function, qkv | given, normalizing.name)
    assert_same_bits(ours, run(function, qkv, normalizing.name))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_of_three_tensors_of_any_thread_count_and_batch(kind, axis, dtype, normalizing):
    grid, threads = (2, 3) if normalizing.simulated else (3, 37), torch.get_num_threads()
    function = normalized_by(kind, grid_size=grid, axis=axis)
    qkv, parameters = torch.randn(4, 1 + grid[0] * grid[1], 3, 2, 16).to(dtype), affine(kind, 16)
    try:
        torch.set_num_threads(1)
        expected = run(function, {"qkv": qkv} | parameters, normalizing.name)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert_same_bits(run(function, {"qkv": qkv} | parameters, normalizing.name), expected)
    finally:
        torch.set_num_threads(threads)
    some = run(function, {"qkv": qkv[1:3]} | parameters, normalizing.name)
    for key in ("out 0", "grad of qkv"):
        assert torch.equal(some[key], expected[key][1:3])
    ours = run(function, dict(zip("qkv", qkv.unbind(2), strict=True)) | parameters, normalizing.name)
    assert torch.equal(torch.stack([ours.pop(f"grad of {name}") for name in "qkv"], 2), expected["grad of qkv"])
    assert_same_bits(expected, ours)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token_order", TOKEN_ORDERS)
def test_a_shorter_clip_is_normalized_alone(kind, token_order, normalizing):
    frames, patches, valid = 4, 3, (2, 4)
    place = torch.arange(frames * patches)
    frame = place // patches if token_order == "time_major" else place % frames
    qkv, parameters = torch.randn(2, 13, 3, 2, 16), affine(kind, 16)
    function = partial(normalized_by, kind, axis="time", token_order=token_order)
    whole = run(function(grid_size=(frames, patches), valid_frames=valid), {"qkv": qkv} | parameters, normalizing.name)
    sums = {f"grad of {name}": torch.zeros(16) for name in parameters}
    for sample, f in enumerate(valid):
        mine = torch.cat([torch.tensor([True]), frame < f])
        one = run(
            function(grid_size=(f, patches)), {"qkv": qkv[sample : sample + 1, mine]} | parameters, normalizing.name
        )
        for key in ("out 0", "grad of qkv"):
            assert torch.equal(whole[key][sample : sample + 1, mine], one[key])
            assert not whole[key][sample, ~mine].any()
        for key in sums:
            sums[key] += one[key]
    for key, total in sums.items():
        torch.testing.assert_close(whole[key], total)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", (float("nan"), float("inf")))
@pytest.mark.parametrize("frames", (3, 9, 40))
def test_special_values_are_seen(special, frames, kind, axis, normalizing):
    """In q, k or v of a prefix token or a patch, and in a weight."""
    if normalizing.name == "triton":
        pytest.skip("tests/triton/test_special_values.py says where they get on a GPU")
    length = 1 + frames * 5
    qkv, parameters = torch.rand(8, length, 3, 1, 16), affine(kind, 16)
    for sample, (part, token) in enumerate(itertools.product(range(3), (0, 4))):
        qkv[sample, token, part, 0, 3] = special
    broken = parameters | {"k_weight": parameters["k_weight"].index_fill(0, torch.tensor([4]), special)}
    function = normalized_by(kind, grid_size=(frames, 5), axis=axis)
    for rows, more in ((qkv, parameters), (qkv[-1:], broken)):
        tensors, grads = {"qkv": rows} | more, [torch.randn(rows.shape[0], length, 1, 16)]
        ours = run(function, tensors, normalizing.name, grads)
        exact = run(function, {key: tensor.double() for key, tensor in tensors.items()}, "reference", grads)
        for key in ours:
            torch.testing.assert_close(ours[key].double(), exact[key], equal_nan=True, rtol=1e-3, atol=1e-4)


def test_prefix_tokens_that_see_themselves_alone_have_no_norm(normalizing):
    """With prefix='none' their q and k take no part, whatever they are."""
    qkv, parameters = torch.randn(2, 14, 3, 1, 16), affine("layer", 16)
    qkv[:, :2, :2] = float("nan")
    function = normalized_by("layer", grid_size=(3, 4), axis="time", num_prefix_tokens=2, prefix="none")
    ours = run(function, {"qkv": qkv} | parameters, normalizing.name)
    assert all(result.isfinite().all() for result in ours.values())
    assert not ours["grad of qkv"][:, :2, :2].any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gradients(kind, axis, normalizing):
    """The second derivative, by the formula, belongs to the kernel's first."""
    tensors = {"qkv": torch.randn(1, 16, 3, 2, 8)} | affine(kind, 8)

    def penalty_gradients(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = {key: tensor.to(dtype).requires_grad_() for key, tensor in tensors.items()}
        out = normalized_by(kind, grid_size=(3, 5), axis=axis)(**leaves, backend=name)
        grads = torch.autograd.grad(out.square().sum(), list(leaves.values()), create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), list(leaves.values()))

    both = penalty_gradients(normalizing.name, torch.float32), penalty_gradients("reference", torch.double)
    for ours, exact in zip(*both, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-3)


def test_autocast_leaves_weights_alone(axis, normalizing):
    tensors = {"qkv": torch.randn(2, 16, 3, 2, 24)} | affine("layer", 24)
    function = normalized_by("layer", grid_size=(3, 5), axis=axis)
    with torch.autocast(normalizing.device, dtype=normalizing.half):
        out = function(**tensors, backend=normalizing.name)
    assert torch.equal(
        out, function(**tensors | {"qkv": tensors["qkv"].to(normalizing.half)}, backend=normalizing.name)
    )


def test_weights_of_another_dtype_have_gradients_of_theirs(normalizing):
    """They are widened to float32, in which all is computed."""
    tensors = {"qkv": torch.randn(2, 13, 3, 2, 16).to(normalizing.half)} | affine("layer", 16, normalizing.half)
    function = normalized_by("layer", grid_size=(3, 4), axis="time")
    ours = run(function, tensors, normalizing.name)
    wide = run(function, {key: t if key == "qkv" else t.float() for key, t in tensors.items()}, normalizing.name)
    for key, result in ours.items():
        assert result.dtype == normalizing.half
        assert torch.equal(result, wide[key].to(normalizing.half))


def test_an_empty_batch_has_gradients_of_zero(normalizing):
    grads = run(
        normalized_by("rms", grid_size=(3, 4), axis="time"),
        {"qkv": torch.randn(0, 13, 3, 2, 8)} | affine("rms", 8),
        normalizing.name,
    )
    assert grads["grad of qkv"].shape == (0, 13, 3, 2, 8)
    assert not grads["grad of q_weight"].any()


def test_transforms_see_the_reference(normalizing):
    """Of the rows and of the weights."""
    qkv, weight = torch.randn(3, 2, 7, 3, 1, 8), torch.randn(3, 8)

    def attend(qkv, weight):
        return space_time_attention(qkv, (2, 3), "time", qk_norm=QKNorm("rms", weight))

    expected = torch.stack([attend(x, w) for x, w in zip(qkv, weight, strict=True)])
    torch.testing.assert_close(torch.func.vmap(attend)(qkv, weight), expected)
    grad = torch.func.grad(lambda w: attend(qkv[0], w).square().sum())(weight[0])
    leaf = weight[0].clone().requires_grad_()
    torch.testing.assert_close(grad, *torch.autograd.grad(attend(qkv[0], leaf).square().sum(), leaf))


def test_the_compiler_sees_one_operator(normalizing):
    torch._dynamo.reset()
    tensors = {"qkv": torch.randn(2, 13, 3, 2, 16)} | affine("layer", 16)
    leaves = {key: tensor.requires_grad_() for key, tensor in tensors.items()}
    function = normalized_by("layer", grid_size=(3, 4), axis="time")
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    ours, theirs = (
        torch.autograd.grad(f(**leaves).square().sum(), list(leaves.values())) for f in (function, compiled)
    )
    assert all(map(torch.equal, ours, theirs))
    for valid in (None, [3, 1]):
        grid = Grid(3, 4, "time", 1, 0.25, qk_norm="layer", qk_norm_eps=1e-6, valid_frames=valid)
        check_ops(leaves["qkv"].detach(), grid, normalizing.name, affine=torch.randn(2, 2, 16))


@pytest.mark.parametrize(
    ("qk_norm", "message"),
    [
        ("rms", "qk_norm must be a hsta_kernels.ops.QKNorm; got str"),
        (QKNorm("batch"), "kind of qk_norm must be 'layer' or 'rms'; got 'batch'"),
        (QKNorm("layer", torch.ones(2, 8)), r"q_weight of qk_norm must have shape \(D,\); got \(2, 8\)"),
        (QKNorm("rms", k_weight=torch.ones(9)), r"k_weight of qk_norm must have shape .* \(8,\); got \(9,\)"),
        (QKNorm("layer", q_bias=torch.ones(1)), r"q_bias of qk_norm must have shape .* \(8,\); got \(1,\)"),
        (QKNorm("rms", k_bias=torch.ones(8)), "k_bias of qk_norm goes with kind 'layer'; got kind 'rms'"),
        (QKNorm("rms", 1.0), "q_weight of qk_norm must be a tensor .* got float"),
        (QKNorm("rms", torch.ones(8).int()), "q_weight of qk_norm must be float32.* got torch.int32"),
        (
            QKNorm("rms", torch.ones(8, device="meta")),
            "q_weight of qk_norm must be on the device of qkv, cpu; got meta",
        ),
        (QKNorm("rms", torch.ones(8).to_sparse()), "q_weight of qk_norm must be a dense tensor"),
        (QKNorm("rms", eps="small"), "eps of qk_norm must be a number; got 'small'"),
        (QKNorm("rms", eps=-1e-6), "eps of qk_norm must be 0 or more; got -1e-06"),
        (QKNorm("rms", eps=float("nan")), "eps of qk_norm must be 0 or more; got nan"),
    ],
)
def test_norms_that_are_none(qk_norm, message):
    with pytest.raises((TypeError, ValueError), match=message):
        space_time_attention(torch.randn(2, 13, 3, 2, 8), (3, 4), "time", qk_norm=qk_norm)

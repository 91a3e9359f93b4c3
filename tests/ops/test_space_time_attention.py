"""Every implementation of space-time attention against the float64 reference, and the reference against a loop."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch

from hsta_kernels import BackendError, backend, backends
from hsta_kernels.ops import QKNorm, space_time_attention
from hsta_kernels.ops.space_time_attention import autograd
from hsta_kernels.ops.space_time_attention.grid import AXES, TOKEN_ORDERS, Grid
from tests.kernels import LACKING, SIMULATED
from tests.ops.attention import WHO_SEES_WHOM, attention, check, looped, of_three, random
from tests.ops.parity import assert_parity, assert_same_bits, run
from tests.tolerances import assert_close_to_reference

pytestmark = pytest.mark.usefixtures("poisoned_empty")

OPERATOR = backends.OPERATORS["space_time_attention"]
EXAMPLES = {
    f"space_time_attention_{axis}": (
        partial(space_time_attention, grid_size=(3, 4), axis=axis),
        {"qkv": (3, 13, 3, 2, 16)},
    )
    for axis in AXES
}
# grid, prefix, heads, head_dim, batch
SMALL = [
    *((grid, prefix, 1, 40, 2) for grid, prefix in itertools.product(((1, 17), (3, 1), (3, 7)), (0, 1, 2))),
    *(((3, 9), 1, 2, head_dim, 1) for head_dim in (8, 16, 32, 64, 128, 5)),
    ((7, 17), 1, 1, 16, 1),
    ((2, 70), 2, 1, 16, 1),
    ((16, 5), 1, 1, 16, 1),
    ((64, 3), 2, 1, 16, 1),
    ((1, 197), 1, 1, 8, 1),
    ((16, 2), 0, 1, 160, 1),  # AnimateDiff's heads
    ((2, 17), 1, 1, 256, 1),
]
GRIDS = ((1, 17), (3, 1), (7, 17), (16, 5), (2, 197))
LARGE = [
    *((grid, prefix, 2, 40, 2) for grid, prefix in itertools.product(GRIDS, (0, 1, 2))),
    *(((3, 9), 1, 3, head_dim, 2) for head_dim in (8, 16, 32, 64, 128, 5)),
    ((64, 3), 1, 1, 32, 3),
    ((3, 196), 1, 12, 64, 1),
]
SHAPES = SMALL if SIMULATED else SMALL + LARGE
# Groups of a few tokens, with and without whole tiles of patches, of more than a vector, and of many.
GRIDS_OF_ORDERS = ((3, 4), (2, 67)) if SIMULATED else ((3, 4), (2, 11), (17, 3), (3, 67))


@pytest.mark.parametrize(("seen_along", "prefix_sees"), WHO_SEES_WHOM)
@pytest.mark.parametrize("prefix", (0, 1, 2))
@pytest.mark.parametrize("token_order", TOKEN_ORDERS)
def test_reference_sees_what_the_definition_says(seen_along, prefix_sees, prefix, token_order):
    qkv = torch.randn(2, prefix + 12, 3, 2, 8, dtype=torch.float64)
    with backend("reference"):
        out = space_time_attention(qkv, (3, 4), seen_along, prefix, prefix=prefix_sees, token_order=token_order)
    torch.testing.assert_close(out, looped(qkv, (3, 4), seen_along, prefix, prefix_sees, token_order))


@pytest.mark.parametrize("seen_along", AXES)
def test_reference_gradients_numerically(seen_along):
    qkv = torch.randn(1, 7, 3, 1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: space_time_attention(x, (2, 3), seen_along, 1), qkv)


# A case a shape, for the processes that compile kernels to share out; shapes of an axis and a dtype follow each other,
# since they have kernels in common.
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity(axis, dtype, kernel, shape):
    grid, prefix, heads, head_dim, batch = shape
    thorough = (torch.float32,) if kernel.simulated else (torch.float32, torch.bfloat16)
    if kernel.name == "triton" and dtype not in thorough and SHAPES.index(shape) % 3:
        pytest.skip("every third shape is enough for a dtype that changes a few casts, not the indexing")
    qkv = torch.randn(batch, prefix + grid[0] * grid[1], 3, heads, head_dim, dtype=torch.float64)
    check(qkv, grid, axis, prefix, dtype, kernel)


@pytest.mark.parametrize(("axis", "prefix_sees"), WHO_SEES_WHOM, indirect=["axis"])
@pytest.mark.parametrize("token_order", TOKEN_ORDERS)
@pytest.mark.parametrize("grid", GRIDS_OF_ORDERS, ids=str)
@pytest.mark.parametrize("prefix", (2,) if SIMULATED else (0, 1, 3))
def test_parity_of_orders_and_prefixes(axis, prefix_sees, token_order, grid, prefix, dtype, kernel):
    function = partial(attention(grid, axis, prefix), prefix=prefix_sees, token_order=token_order)
    qkv = torch.randn(2, prefix + grid[0] * grid[1], 3, 1 if kernel.simulated else 2, 24).to(kernel.device, dtype)
    if (not prefix or prefix_sees == "all") and (token_order == "time_major" or axis == "joint"):
        pytest.skip("test_parity has these")
    grad = torch.randn_like(qkv[:, :, 0])
    assert_parity(function, {"qkv": qkv}, [grad], kernel, case=f"{axis} {grid} {prefix_sees} P={prefix} {token_order}")


def test_order_of_tokens_changes_no_bit(axis, kernel):
    """The same patches in another order: the same products in the same order, but joint."""
    if axis == "joint":
        pytest.skip("joint attention has no order")
    grid = (3, 11) if kernel.simulated else (5, 37)
    qkv = random((2, 1 + grid[0] * grid[1], 3, 2, 16), kernel)["qkv"]

    def patch_major(x):
        return torch.cat([x[:, :1], x[:, 1:].unflatten(1, grid).transpose(1, 2).flatten(1, 2)], 1)

    ours = run(attention(grid, axis), {"qkv": qkv}, kernel.name)
    theirs = run(partial(attention(grid, axis), token_order="patch_major"), {"qkv": patch_major(qkv)}, kernel.name)
    assert_same_bits(theirs, {key: patch_major(result) for key, result in ours.items()})


@pytest.mark.parametrize("magnitude", (1e4, 1e-4))
def test_magnitudes(axis, magnitude, dtype, kernel):
    if dtype == torch.float16 and magnitude > 1:
        magnitude = 30  # the scores' gradients, some magnitude squared, must stay below 65504
    # Large: one-hot rows. Small: uniform rows.
    qkv = torch.randn(2, 1 + 3 * 17, 3, 2, 16, dtype=torch.float64) * magnitude
    ours, _, exact = check(qkv, (3, 17), axis, 1, dtype, kernel)
    if magnitude == 1e4:  # probabilities come back as exactly 0 and 1
        assert torch.equal(ours["out 0"].double(), exact["out 0"])


def test_what_has_no_score_above_minus_infinity_weighs_nothing(axis, dtype, kernel):
    """In the softmax of a prefix query, which is merged from those of parts: all positions of a part, all but the
    prefix, everything. Gradients of such keys are NaN in any case: zero times infinity."""
    grid, prefix = (7, 17), 1
    qkv = torch.rand(3, prefix + grid[0] * grid[1], 3, 1, 16) + 0.5
    patches = qkv[:, prefix:].unflatten(1, grid)
    patches[0, :, 1:, 1] = patches[1, :, :, 1] = qkv[2, :, 1] = -float("inf")

    def outputs(name: str, dtype: torch.dtype) -> torch.Tensor:
        with torch.no_grad():
            return attention(grid, axis, prefix)(qkv.to(kernel.device, dtype), backend=name)

    ours, same, exact = (
        outputs(*of) for of in ((kernel.name, dtype), ("reference", dtype), ("reference", torch.double))
    )
    assert torch.equal(ours.isnan(), exact.isnan())
    finite = exact.isfinite()
    assert_close_to_reference(ours[finite], same[finite], exact[finite], "out")


@pytest.mark.parametrize(
    ("axis", "grid_size", "prefix"),
    [("time", (1, 1), 40), ("time", (8, 3), 2), ("space", (2, 40), 1)],
    indirect=["axis"],
)
def test_parity_of_saturated_prefix_queries(axis, grid_size, prefix, dtype, kernel):
    """A query that sees one key alone has no gradient: dp of that key and delta, from the output, are one number."""
    tokens = prefix + grid_size[0] * grid_size[1]
    batch, heads = (1, 1) if kernel.simulated else (4, 2)
    qkv = (torch.randn(batch, tokens, 3, heads, 64) * 1e3).to(kernel.device, dtype)
    grad = torch.randn(batch, tokens, heads, 64).to(kernel.device, dtype)
    results = run(attention(grid_size, axis, prefix), {"qkv": qkv}, kernel.name, [grad])
    assert not results["grad of qkv"][:, :prefix, 0].any()


def test_layouts(axis, kernel):
    """Views that are read in place, or copied where the last dimension is not contiguous; gradients of any layout."""
    grid, length, heads, dim = (3, 5), 16, 2, 16
    base = torch.randn(2, length, 3, heads, dim, dtype=torch.float64)
    grad = torch.randn(length, heads, dim, 2, dtype=torch.float64).permute(3, 0, 1, 2)
    one = torch.tensor(0.7, dtype=torch.float64).expand(2, length, heads, dim)

    def sliced(t, first):  # a slice of a longer, wider tensor
        wide = torch.full((2, length + 3, 3, heads + 1, dim + 8), float("nan"), dtype=t.dtype, device=t.device)
        view = wide[:, 2 : 2 + length, :, :heads, first : first + dim]
        return view.copy_(t)

    for strided, incoming in (
        (lambda t: t, grad),
        (lambda t: t.permute(2, 0, 3, 1, 4).contiguous().permute(1, 3, 0, 2, 4), grad),  # stored (3, B, H, L, D)
        (lambda t: sliced(t, 8), one),
        (lambda t: sliced(t, 4), grad),
        (lambda t: sliced(t, 3), grad),
        (lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2), one),  # last dimension not contiguous
        (lambda t: t[:1].expand(2, -1, -1, -1, -1), grad),
    ):
        check(base, grid, axis, 1, torch.float32, kernel, incoming, strided)

    expanded = base[:1].float().to(kernel.device).expand(2, -1, -1, -1, -1)
    function = attention(grid, axis)
    assert_same_bits(*(run(function, {"qkv": t}, kernel.name) for t in (expanded, expanded.contiguous())))


def test_three_tensors_are_read_where_they_lie_and_have_gradients_of_their_own(axis, dtype, kernel):
    """The bits of the packed one, whichever layout each has, and no gradient is part of another's memory."""
    grid, length, heads, dim = ((2, 10), 21, 2, 16) if kernel.simulated else ((3, 21), 64, 2, 32)
    function = attention(grid, axis)
    qkv = torch.randn(2, length, 3, heads, dim).to(kernel.device, dtype)
    packed = run(function, {"qkv": qkv}, kernel.name)
    q, k, v = qkv.clone().unbind(2)
    layouts = (
        (q.contiguous(), k.contiguous(), v.contiguous()),
        tuple(part.transpose(1, 2).contiguous().transpose(1, 2) for part in (q, k, v)),  # (B, H, L, D)
        (q.contiguous(), *torch.stack([k, v], 2).unbind(2)),
    )
    for parts in layouts:
        tensors = dict(zip("qkv", parts, strict=True))
        ours = run(of_three(function), tensors, kernel.name)
        assert torch.equal(ours["out 0"], packed["out 0"])
        grads = [ours[f"grad of {name}"] for name in "qkv"]
        assert torch.equal(torch.stack(grads, 2), packed["grad of qkv"])
        assert all(grad.is_contiguous() for grad in grads)
        assert len({grad.untyped_storage().data_ptr() for grad in grads}) == 3


def test_three_tensors_through_the_compiler_and_twice_differentiated(axis, kernel):
    if kernel.name != "cpu":
        pytest.skip("what the compiler sees is the same for every backend")
    function = of_three(attention((3, 5), axis))
    parts = [torch.randn(2, 16, 2, 16, requires_grad=True) for _ in range(3)]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(
        *(torch.autograd.grad(f(*parts).square().sum(), parts) for f in (compiled, function)), strict=True
    ):
        assert torch.equal(ours, theirs)
    small = [torch.randn(1, 7, 1, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradgradcheck(of_three(attention((2, 3), axis)), small)


def test_a_query_without_its_gradient(kernel):
    """Of three tensors some may need none."""
    q, k, v = (torch.randn(2, 16, 2, 16, device=kernel.device) for _ in range(3))
    out = space_time_attention((q, k.requires_grad_(), v), (3, 5), "time", backend=kernel.name)
    (grad,) = torch.autograd.grad(out.sum(), [k])
    exact = space_time_attention((q.double(), k.double(), v.double()), (3, 5), "time")
    torch.testing.assert_close(grad, torch.autograd.grad(exact.sum(), [k])[0])


def test_empty_batch(kernel):
    results = run(attention((2, 3), "time"), random((0, 7, 3, 2, 8), kernel), kernel.name)
    assert results["out 0"].shape == (0, 7, 2, 8) and results["grad of qkv"].shape == (0, 7, 3, 2, 8)


def test_scale(axis, kernel):
    qkv = random((2, 16, 3, 2, 16), kernel)["qkv"]
    for scale in (0.0, 0.3, -0.5):
        ours, theirs = (attention((3, 5), axis)(qkv, scale=scale, backend=name) for name in (kernel.name, "reference"))
        torch.testing.assert_close(ours, theirs)


def test_nan_is_not_hidden(axis, kernel):
    qkv = random((1, 16, 3, 1, 8), kernel)["qkv"]
    qkv[0, 3, 0] = float("nan")
    out = attention((3, 5), axis)(qkv, backend=kernel.name)
    assert out[0, 3].isnan().all()
    assert out[0, 4:].isfinite().all()


def test_same_bits_for_any_thread_count_and_batch(axis, kernel):
    patches, heads = (9, 2) if kernel.simulated else (37, 4)
    qkv = random((5, 1 + 3 * patches, 3, heads, 16), kernel)
    function, threads = attention((3, patches), axis), torch.get_num_threads()
    expected = run(function, qkv, kernel.name)
    try:
        for count in (1, 2, 5) if kernel.name == "cpu" else ():
            torch.set_num_threads(count)
            assert_same_bits(run(function, qkv, kernel.name), expected)
    finally:
        torch.set_num_threads(threads)
    alone = run(function, {"qkv": qkv["qkv"][3:4]}, kernel.name)
    assert_same_bits({key: result[3:4] for key, result in expected.items()}, alone)


def test_inductor(axis, kernel):
    """tests/ops/test_compiler.py has the compiler without its back end, for all operators."""
    if kernel.simulated:
        pytest.skip("what simulates a GPU is slow, and its kernels are the same to Inductor")
    torch.compiler.reset()
    qkv = random((2, 16, 3, 2, 16), kernel)
    compiled = torch.compile(attention((3, 5), axis), fullgraph=True, backend="inductor")
    assert_same_bits(*(run(function, qkv, kernel.name) for function in (compiled, attention((3, 5), axis))))


def test_export(kernel):
    class Module(torch.nn.Module):
        def forward(self, qkv):
            return space_time_attention(qkv, (3, 5), "time", 1)

    qkv = random((4, 16, 3, 2, 16), kernel)["qkv"]
    with backend(kernel.name):
        program = torch.export.export(Module(), (qkv[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
        assert torch.equal(program.module()(qkv), Module()(qkv))


@pytest.mark.skipif(backends.cpu is None, reason="the CPU kernels are not built")
@pytest.mark.parametrize("seen_along", ("time", "space"))
def test_statistics_of_prefix_queries_are_those_of_their_softmax(seen_along):
    qkv = torch.randn(2, 16, 3, 2, 16)
    _, stats = autograd._forward([qkv], *Grid(3, 5, seen_along, 1, 0.25), None, None, None, None, None, "cpu")
    q, k = qkv[:, :1, 0], qkv[:, :, 1]  # the prefix query sees everything
    natural = (torch.einsum("bihd,bjhd->bhij", q, k) * 0.25).logsumexp(-1)
    torch.testing.assert_close((stats[..., :1, 0] + stats[..., :1, 1].log2()) * math.log(2), natural)


def test_autocast_casts_as_torch_attention_does():
    qkv = torch.randn(1, 16, 3, 2, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = space_time_attention(qkv, (3, 5), "time")
    assert torch.equal(out, space_time_attention(qkv.bfloat16(), (3, 5), "time"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"qkv": 1.0}, TypeError, "qkv must be a tensor"),
        ({"qkv": torch.zeros(1, 16, 3, 2)}, ValueError, r"qkv must have shape \(B, L, 3, H, D\)"),
        ({"qkv": torch.zeros(1, 16, 2, 2, 8)}, ValueError, r"qkv must have shape \(B, L, 3, H, D\)"),
        (
            {"qkv": torch.zeros(1, 16, 3, 2, 8, dtype=torch.int64)},
            TypeError,
            "qkv must be float32.*torch.int64",
        ),
        ({"qkv": torch.zeros(1, 15, 3, 2, 8)}, ValueError, r"1 \+ 3\*5 = 16 tokens.*got 15"),
        ({"qkv": (torch.zeros(1, 16, 2, 8),) * 2}, ValueError, "a packed tensor or three tensors q, k and v; got 2"),
        ({"qkv": (torch.zeros(1, 16, 2),) * 3}, ValueError, r"q of qkv must have shape \(B, L, H, D\)"),
        (
            {"qkv": (torch.zeros(1, 16, 2, 8), torch.zeros(1, 16, 2, 8).double(), torch.zeros(1, 16, 2, 8))},
            TypeError,
            "k of qkv must have the dtype of q of qkv, torch.float32; got torch.float64",
        ),
        (
            {"qkv": (torch.zeros(1, 16, 2, 8), torch.zeros(1, 16, 2, 8), torch.zeros(1, 16, 1, 8))},
            ValueError,
            r"v of qkv must have shape \(B, L, H, D\) of k = \(1, 16, 2, 8\); got \(1, 16, 1, 8\)",
        ),
        ({"prefix": "mean"}, ValueError, "prefix must be 'all', 'none' or 'frame_mean'; got 'mean'"),
        ({"prefix": "frame_mean"}, ValueError, "prefix='frame_mean' goes with axis='space'; got axis='time'"),
        ({"token_order": "frames"}, ValueError, "token_order must be 'time_major' or 'patch_major'; got 'frames'"),
        ({"grid_size": (4, 5)}, ValueError, r"1 \+ 4\*5 = 21 tokens.*got 16"),
        ({"grid_size": (0, 5)}, ValueError, "grid_size must be two positive integers"),
        ({"grid_size": 15}, ValueError, "grid_size must be two integers"),
        ({"grid_size": (3.0, 5)}, TypeError, "grid_size must be two integers"),
        ({"axis": "depth"}, ValueError, "axis must be 'time', 'space' or 'joint'; got 'depth'"),
        ({"num_prefix_tokens": -1}, ValueError, "num_prefix_tokens must be 0 or more"),
        ({"num_prefix_tokens": None}, TypeError, "num_prefix_tokens must be an integer"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {
        "qkv": torch.zeros(1, 16, 3, 2, 8),
        "grid_size": (3, 5),
        "axis": "time",
        "num_prefix_tokens": 1,
    }
    with pytest.raises(error, match=message):
        space_time_attention(**(arguments | change))


@pytest.mark.skipif(backends.cpu is None, reason="the CPU kernels are not built: nothing to request")
def test_explicit_backend_says_why_it_cannot():
    with backend("cpu"), pytest.raises(BackendError, match="float64"):
        space_time_attention(torch.zeros(1, 16, 3, 2, 8, dtype=torch.float64), (3, 5), "time")


# Of what only the CPU's kernels have: its argument, what tells the backends of it, and what they say.
REFUSED = {
    "rotary": ((torch.rand(13, 16), torch.rand(13, 16)), {"rotary_pairs": "half"}, "the kernels rotate nothing"),
    "qk_norm": (QKNorm("rms"), {"qk_norm": "rms"}, "the kernels normalize nothing"),
    "bias": (torch.randn(2, 4, 4), {"biased": True}, "the kernels add none to the scores"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_backend_has_not_it_says(name, kernel):
    """And where any backend will do, one that has it is taken."""
    if name not in LACKING[kernel.name]:
        pytest.skip("this backend has it")
    argument, _, reason = REFUSED[name]
    argument = torch.utils._pytree.tree_map(
        lambda leaf: leaf.to(kernel.device) if torch.is_tensor(leaf) else leaf, argument
    )
    attend = partial(attention((3, 4), "time"), random((1, 13, 3, 2, 16), kernel)["qkv"], **{name: argument})
    with pytest.raises(BackendError, match=f"{name} is given; {reason}"):
        attend(backend=kernel.name)
    torch.testing.assert_close(attend(backend="auto"), attend(backend="reference"))


@pytest.mark.parametrize(("backend_name", "name"), [(b, name) for b, names in LACKING.items() for name in names])
def test_what_a_backend_has_not_passes_it_over(name, backend_name):
    """Also asked where it cannot run."""
    grid = Grid(3, 4, "time", 1, 1.0)._replace(**REFUSED[name][1])
    assert name in OPERATOR.refusal(backend_name, (torch.randn(1, 13, 3, 2, 16),), grid)


@pytest.mark.parametrize("sharing", (2, 3))
def test_heads_that_share_keys(axis, kernel, sharing):
    """As if each key and value were there for each of its queries' heads."""
    q, k, v = (torch.randn(2, 13, heads, 16, device=kernel.device) for heads in (6, 6 // sharing, 6 // sharing))
    grads = [torch.randn(2, 13, 6, 16, device=kernel.device)]

    def shared(q, k, v):
        return space_time_attention((q, k, v), (3, 4), axis)

    def repeated(q, k, v):
        return space_time_attention((q, *(part.repeat_interleave(sharing, dim=2) for part in (k, v))), (3, 4), axis)

    tensors = {"q": q, "k": k, "v": v}
    ours, _, exact = assert_parity(shared, tensors, grads, kernel)
    expected = run(repeated, {key: t.double() for key, t in tensors.items()}, "reference", [grads[0].double()])
    for key in ours:
        torch.testing.assert_close(exact[key], expected[key])


def test_heads_that_cannot_share_keys():
    q, k, v = (torch.randn(2, 13, heads, 16) for heads in (6, 4, 4))
    with pytest.raises(ValueError, match="k of qkv must have a number of heads that divides the 6 of q; got 4"):
        space_time_attention((q, k, v), (3, 4), "time")
    with pytest.raises(ValueError, match="v of qkv must have shape"):
        space_time_attention((q, k[:, :, :3], v[:, :, :2]), (3, 4), "time")


@pytest.mark.parametrize("length", ("height", "width", "window"))
def test_axes_and_windows_by_views(length):
    """As docs/operators.md has them, against attention with a mask."""
    frames, height, width, window = 4, 3, 5, 2
    qkv = torch.randn(2, frames * height * width, 3, 2, 8)
    t, y, x = torch.unravel_index(torch.arange(frames * height * width), (frames, height, width))
    if length == "height":
        rows = qkv.unflatten(1, (frames, height * width)).flatten(0, 1)
        out, same = space_time_attention(rows, (height, width), "time", 0), (t, x)
    elif length == "width":
        out, same = space_time_attention(qkv, (frames * height, width), "space", 0), (t, y)
    else:
        windows = qkv.unflatten(1, (frames // window, window * height * width)).flatten(0, 1)
        out, same = space_time_attention(windows, (window, height * width), "joint", 0), (t // window,)
    seen = torch.stack([of[:, None] == of for of in same]).all(0)
    q, k, v = qkv.transpose(1, 3).unbind(2)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)
    torch.testing.assert_close(out.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)

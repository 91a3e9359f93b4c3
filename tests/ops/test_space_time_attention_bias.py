"""Additive bias of the scores by relative position: every implementation adds it to the scores it belongs to."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from hsta_kernels import backends
from hsta_kernels.ops import QKNorm, space_time_attention
from hsta_kernels.ops.space_time_attention.grid import TOKEN_ORDERS, Grid
from tests.kernels import Kernel
from tests.ops.attention import WHO_SEES_WHOM, attention, check_ops, of_three
from tests.ops.parity import assert_parity, assert_same_bits, run

pytestmark = pytest.mark.usefixtures("poisoned_empty")

OPERATOR = backends.OPERATORS["space_time_attention"]
# Groups of a vector and less, of more, large, and of several blocks.
GRIDS = ((3, 4), (2, 9), (9, 5), (17, 3), (2, 67))
CASES = [
    (axis, grid, prefix, prefix_sees, token_order, dtype)
    for (axis, prefix_sees), grid, prefix, token_order, dtype in itertools.product(
        WHO_SEES_WHOM, GRIDS, (0, 2), TOKEN_ORDERS, (torch.float32, torch.bfloat16)
    )
]


@pytest.fixture
def adding(kernel: Kernel) -> Kernel:
    if kernel.name != "cpu":
        pytest.skip("the CPU kernels add a bias, as test_what_a_backend_has_not_it_says shows")
    return kernel


def group_rows(grid, axis: str, prefix: int = 1, prefix_sees: str = "all") -> int:
    patches = {"time": grid[0], "space": grid[1], "joint": grid[0] * grid[1]}[axis]
    return patches + (0 if prefix_sees == "none" else prefix)


def case_of(grid, axis: str, heads: int = 2, head_dim: int = 24, batch: int = 2, masked: bool = False):
    """qkv and a bias of the default prefix; with masked entries, but none on the diagonal."""
    qkv = torch.randn(batch, 1 + grid[0] * grid[1], 3, heads, head_dim)
    rows = group_rows(grid, axis)
    bias = torch.randn(heads, rows, rows)
    if masked:
        bias[(torch.rand(bias.shape) < 0.3) & ~torch.eye(rows, dtype=torch.bool)] = -torch.inf
    return {"qkv": qkv, "bias": bias}


@pytest.mark.parametrize(("seen_along", "prefix_sees"), WHO_SEES_WHOM)
@pytest.mark.parametrize("prefix", (0, 2))
@pytest.mark.parametrize("token_order", TOKEN_ORDERS)
def test_reference_is_attention_with_a_mask_in_each_group(seen_along, prefix_sees, prefix, token_order):
    """PyTorch's own, on the gathered rows of each group; with masked entries, and gradients of both."""
    grid = frames, patches = 3, 4
    length, rows = prefix + 12, group_rows(grid, seen_along, prefix, prefix_sees)
    qkv = torch.randn(2, length, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, rows, rows, dtype=torch.float64)
    bias[:, 1, 2] = bias[0, -1, 0] = -torch.inf
    bias.requires_grad_()
    place = [divmod(i, patches) if token_order == "time_major" else divmod(i, frames)[::-1] for i in range(12)]
    groups: dict[int, list[int]] = {}
    for i, (t, n) in enumerate(place):
        groups.setdefault({"time": n, "space": t, "joint": 0}[seen_along], []).append(prefix + i)
    first = [] if prefix_sees == "none" else list(range(prefix))

    def attend(queries, keys, bias):
        q, k, v = (qkv[:, at, part].transpose(1, 2) for at, part in ((queries, 0), (keys, 1), (keys, 2)))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)

    expected = torch.zeros(2, length, 2, 8, dtype=torch.float64)
    for members in groups.values():
        out = attend([*first, *members], [*first, *members], bias)
        expected = expected.index_copy(1, torch.tensor(members), out[:, len(first) :])
        if prefix_sees == "frame_mean" or seen_along == "joint":
            mean = out[:, : len(first)] / len(groups)
            expected = expected.index_add(1, torch.tensor(first, dtype=torch.int64), mean)
    if prefix_sees == "none":
        expected = torch.cat([qkv[:, :prefix, 2], expected[:, prefix:]], 1)
    elif prefix_sees == "all" and seen_along != "joint" and prefix:
        keys = [*first, *itertools.chain(*groups.values())]
        of_prefix = torch.cat([bias[:, :prefix, :prefix], bias[:, :prefix, prefix:].repeat(1, 1, len(groups))], -1)
        expected = torch.cat([attend(first, keys, of_prefix), expected[:, prefix:]], 1)

    out = space_time_attention(
        qkv, grid, seen_along, prefix, backend="reference", prefix=prefix_sees, token_order=token_order, bias=bias
    )
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(of, (qkv, bias), grad) for of in (out, expected))
    torch.testing.assert_close(ours, theirs)
    assert not ours[1][:, 1, 2].any()


@pytest.mark.parametrize(("seen_along", "prefix_sees"), WHO_SEES_WHOM)
def test_reference_is_twice_differentiable(seen_along, prefix_sees):
    rows = group_rows((2, 3), seen_along, 1, prefix_sees)
    inputs = torch.randn(1, 7, 3, 1, 2, dtype=torch.float64), torch.randn(1, rows, rows, dtype=torch.float64)
    attend = partial(attention((2, 3), seen_along), prefix=prefix_sees, backend="reference")
    inputs = tuple(x.requires_grad_() for x in inputs)
    assert torch.autograd.gradgradcheck(lambda qkv, bias: attend(qkv, bias=bias), inputs)


@pytest.mark.parametrize(("case", "number"), [(case, i) for i, case in enumerate(CASES)], ids=str)
def test_parity(case, number, adding):
    """Every second case has three tensors, every third masked entries."""
    axis, grid, prefix, prefix_sees, token_order, dtype = case
    function = partial(attention(grid, axis, prefix), prefix=prefix_sees, token_order=token_order)
    rows = group_rows(grid, axis, prefix, prefix_sees)
    qkv, bias = torch.randn(2, prefix + grid[0] * grid[1], 3, 2, 24).to(dtype), torch.randn(2, rows, rows)
    if number % 3 == 0:
        function = masking(function, (torch.rand(bias.shape) < 0.3) & ~torch.eye(rows, dtype=torch.bool))
    packed = number // 2 % 2 == 0
    tensors = {"qkv": qkv} if packed else dict(zip("qkv", qkv.clone().unbind(2), strict=True))
    function = function if packed else of_three(function)
    assert_parity(function, tensors | {"bias": bias}, [torch.randn_like(qkv[:, :, 0])], adding, case=case)


def masking(function, mask: torch.Tensor):
    """`function` of a bias that has -inf where `mask` says."""
    return lambda *args, bias, **more: function(*args, bias=bias.masked_fill(mask, -torch.inf), **more)


@pytest.mark.parametrize("token_order", TOKEN_ORDERS)
def test_parity_with_all_else(token_order, axis, dtype, adding):
    """Dropout, norms that learn, rotary, heads that share keys, clips of different lengths; a bias of the dtype, with
    strides of its own."""
    grid, prefix, head_dim = (3, 11), 1, 16
    attend = partial(
        attention(grid, axis, prefix), token_order=token_order, dropout_rate=0.25, seed=torch.tensor(5),
        valid_frames=(3, 2, 3, 1), rotary=(torch.randn(34, 16) / 2, torch.randn(34, 16) / 2),
    )  # fmt: skip

    def normalized(q, k, v, bias, q_weight, k_weight, **more):
        return attend((q, k, v), bias=bias, qk_norm=QKNorm("rms", q_weight, k_weight), **more)

    rows = group_rows(grid, axis)
    q, k, v = torch.randn(4, 34, 4, head_dim), *torch.randn(2, 4, 34, 2, head_dim)
    tensors = {"q": q, "k": k, "v": v, "bias": torch.randn(rows, rows, 4).permute(2, 1, 0)}
    tensors |= {"q_weight": torch.rand(head_dim), "k_weight": torch.rand(head_dim)}
    tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    assert_parity(normalized, tensors, [torch.randn(q.shape)], adding)


def test_large_scores_and_biases_that_cancel(axis, dtype, adding):
    """The scores of forward and backward pass have the same bits: a probability of one is one."""
    tensors = case_of((3, 37), axis)
    tensors = {"qkv": (tensors["qkv"] * 4).to(dtype), "bias": tensors["bias"] * 30}
    assert_parity(attention((3, 37), axis), tensors, [torch.randn(tensors["qkv"][:, :, 0].shape)], adding)


@pytest.mark.parametrize("name", ("reference", "cpu"))
@pytest.mark.parametrize("seen_along", ("time", "space", "joint"))
def test_heads_that_share_keys_have_a_bias_each(seen_along, name):
    rows = group_rows((3, 4), seen_along)
    q, bias = torch.randn(2, 13, 4, 8), torch.randn(4, rows, rows, requires_grad=True)
    k, v = torch.randn(2, 2, 13, 2, 8)
    attend = partial(attention((3, 4), seen_along), bias=bias, backend=name)
    outs = attend((q, k, v)), attend((q, *(x.repeat_interleave(2, 2) for x in (k, v))))
    torch.testing.assert_close(*outs)
    grad = torch.randn(q.shape)
    torch.testing.assert_close(*(torch.autograd.grad(out, bias, grad)[0] for out in outs))


@pytest.mark.parametrize("token_order", TOKEN_ORDERS)
@pytest.mark.parametrize("prefix_sees", ("all", "none"))
def test_a_shorter_clip_has_the_rows_of_its_frames(token_order, prefix_sees, axis, adding):
    frames, patches, valid = 4, 3, (2, 4)
    place = torch.arange(frames * patches)
    frame = place // patches if token_order == "time_major" else place % frames
    rows = {"time": torch.arange(frames), "space": torch.zeros(patches), "joint": frame}[axis]
    qkv = torch.randn(2, 13, 3, 2, 16)
    attend = partial(space_time_attention, axis=axis, token_order=token_order, prefix=prefix_sees, backend="cpu")
    one = [torch.tensor([True])]
    of_prefix = one if prefix_sees == "all" else []
    bias = torch.randn(2, *(2 * (len(rows) + len(of_prefix),)), requires_grad=True)
    out = attend(qkv, (frames, patches), valid_frames=valid, bias=bias)
    grad = torch.randn(out.shape)
    (ours,) = torch.autograd.grad(out, bias, grad)
    theirs = torch.zeros_like(ours)
    for sample, f in enumerate(valid):
        mine, seen = torch.cat([*one, frame < f]), torch.cat([*of_prefix, rows < f])
        alone = attend(qkv[sample : sample + 1, mine], (f, patches), bias=bias[:, seen][:, :, seen])
        assert torch.equal(out[sample : sample + 1, mine], alone)
        theirs += torch.autograd.grad(alone, bias, grad[sample : sample + 1, mine])[0]
    torch.testing.assert_close(ours, theirs)


def test_zeros_change_nothing_that_counts(axis, dtype, adding):
    tensors = case_of((3, 9), axis)
    qkv = {"qkv": tensors["qkv"].to(dtype)}
    ours = run(partial(attention((3, 9), axis), bias=torch.zeros_like(tensors["bias"])), qkv, adding.name)
    expected = run(attention((3, 9), axis), qkv, adding.name)
    for key, result in ours.items():
        torch.testing.assert_close(result, expected[key])


@pytest.mark.parametrize("grid", ((3, 4), (3, 37), (40, 3)))
def test_a_masked_key_has_no_weight_and_no_gradient(grid, axis, adding):
    """Exactly: another value there changes no bit, and infinite scores of float32 are a mask too."""
    tensors = case_of(grid, axis, masked=True)
    attend, masked = attention(grid, axis), tensors["bias"] == -torch.inf
    ours = run(attend, tensors, adding.name)
    assert not ours["grad of bias"][masked].any()
    lowest = tensors["bias"].masked_fill(masked, torch.finfo(torch.float32).min)
    assert_same_bits(run(attend, tensors | {"bias": lowest}, adding.name), ours)
    if axis == "joint":
        blind = tensors["bias"].clone()
        blind[:, :, 5], blind[:, 5, 5] = -torch.inf, 0  # a key that only its own query sees
        other = tensors["qkv"].clone()
        other[:, 5] = torch.randn_like(other[:, 5])
        outs = [run(attend, {"qkv": qkv, "bias": blind}, adding.name)["out 0"] for qkv in (tensors["qkv"], other)]
        rest = torch.arange(outs[0].shape[1]) != 5
        assert torch.equal(outs[0][:, rest], outs[1][:, rest]) and not torch.equal(*outs)


@pytest.mark.parametrize("name", ("reference", "cpu"))
@pytest.mark.parametrize("grid", ((3, 4), (3, 37)))
@pytest.mark.parametrize("seen_along", ("time", "space", "joint"))
def test_a_query_of_masked_keys_alone_has_nan(name, grid, seen_along):
    """As torch.softmax gives, a prefix query too; and the other queries have none."""
    tensors = case_of(grid, seen_along)
    for row in (0, 2):
        bias = tensors["bias"].clone()
        bias[:, row] = -torch.inf
        out = attention(grid, seen_along)(tensors["qkv"], bias=bias, backend=name)
        blind = torch.zeros(out.shape[1], dtype=torch.bool)
        patch = torch.arange(grid[0] * grid[1])
        if row == 0:
            blind[0] = True
        else:
            place = {"time": patch // grid[1], "space": patch % grid[1], "joint": patch}[seen_along]
            blind[1:] = place == row - 1
        assert out[:, blind].isnan().all() and out[:, ~blind].isfinite().all()


@pytest.mark.parametrize("special", (float("nan"), float("inf")))
@pytest.mark.parametrize("grid", ((3, 5), (40, 5)))
def test_special_values_are_seen(special, grid, axis, adding):
    """In q, k or v of a prefix token or a patch, which the prefix may not see, and in the bias."""
    length, rows = 1 + grid[0] * grid[1], group_rows(grid, axis)
    qkv, bias = torch.rand(6, length, 3, 1, 16), torch.rand(1, rows, rows) * 4
    bias[:, 0, 0] = -torch.inf
    for sample, (part, token) in enumerate(itertools.product(range(3), (0, 4))):
        qkv[sample, token, part, 0, 3] = special
    broken = bias.clone()
    broken[:, 2, 1] = special
    grads = [torch.randn(6, length, 1, 16)]
    for tensors in ({"qkv": qkv, "bias": bias}, {"qkv": torch.rand(qkv.shape), "bias": broken}):
        ours = run(attention(grid, axis), tensors, "cpu", grads)
        exact = run(attention(grid, axis), {k: x.double() for k, x in tensors.items()}, "reference", grads)
        for key in ours:
            torch.testing.assert_close(ours[key].double(), exact[key], equal_nan=True, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("grid", ((3, 37), (5, 4)))
def test_the_same_bits_of_three_tensors_and_any_thread_count(grid, axis, dtype, adding):
    """Also of the bias's gradient, which all samples and groups share."""
    threads = torch.get_num_threads()
    tensors = case_of(grid, axis, batch=5)
    tensors["qkv"] = tensors["qkv"].to(dtype)
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(attention(grid, axis), tensors, adding.name))
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert_same_bits(others, results[0])
    parts = dict(zip("qkv", tensors["qkv"].unbind(2), strict=True)) | {"bias": tensors["bias"]}
    ours = run(of_three(attention(grid, axis)), parts, adding.name)
    for key in ("out 0", "grad of bias"):
        assert torch.equal(ours[key], results[0][key])
    assert torch.equal(torch.stack([ours[f"grad of {name}"] for name in "qkv"], 2), results[0]["grad of qkv"])
    some = run(attention(grid, axis), {"qkv": tensors["qkv"][1:3], "bias": tensors["bias"]}, adding.name)
    assert torch.equal(some["grad of qkv"], results[0]["grad of qkv"][1:3])


def test_a_bias_that_learns_nothing_costs_no_gradient(axis, adding, monkeypatch):
    tensors = case_of((3, 37), axis)
    learned = run(attention((3, 37), axis), tensors, adding.name)
    asked = []
    backward = OPERATOR.implementations[adding.name].backward
    monkeypatch.setattr(
        OPERATOR.implementations[adding.name], "backward", lambda *a: (asked.append(a[6] is not None), backward(*a))[1]
    )
    ours = run(partial(attention((3, 37), axis), bias=tensors["bias"]), {"qkv": tensors["qkv"]}, adding.name)
    assert asked == [False]
    assert torch.equal(ours["grad of qkv"], learned["grad of qkv"])
    bias = tensors["bias"].requires_grad_()  # and the bias alone
    out = attention((3, 37), axis)(tensors["qkv"], bias=bias, backend=adding.name)
    assert torch.equal(torch.autograd.grad(out, bias, out.detach())[0], learned["grad of bias"])


def test_an_empty_batch_has_a_gradient_of_zeros(axis, adding):
    tensors = case_of((3, 4), axis, batch=0)
    assert not run(attention((3, 4), axis), tensors, adding.name)["grad of bias"].any()


def test_gradients_of_gradients(axis, adding):
    """The second derivatives, by the formula, belong to the kernel's first; of qkv and of the bias."""
    tensors = case_of((3, 5), axis, head_dim=8, batch=1)

    def penalty_gradients(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        inputs = [x.to(dtype).requires_grad_() for x in tensors.values()]
        out = attention((3, 5), axis)(inputs[0], bias=inputs[1], backend=name)
        grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)

    ours, exact = penalty_gradients("cpu", torch.float32), penalty_gradients("reference", torch.double)
    torch.testing.assert_close([g.double() for g in ours], list(exact), rtol=1e-3, atol=1e-3)


def test_a_table_of_relative_positions_learns(adding):
    """Video Swin's: a number for each head and distance in time, height and width."""
    t, h, w = window = (2, 3, 3)
    place = torch.cartesian_prod(*map(torch.arange, window))
    apart = place[:, None] - place + torch.tensor(window) - 1
    number = (apart * torch.tensor([(2 * h - 1) * (2 * w - 1), 2 * w - 1, 1])).sum(-1)
    table = torch.randn((2 * t - 1) * (2 * h - 1) * (2 * w - 1), 3, requires_grad=True)
    q, k, v = torch.randn(3, 5, t * h * w, 3, 16)
    bias = table[number].permute(2, 0, 1)
    out = space_time_attention((q, k, v), (t, h * w), "joint", 0, bias=bias, backend=adding.name)
    theirs = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=bias).transpose(1, 2)
    torch.testing.assert_close(out, theirs)
    grads = (torch.autograd.grad(of, table, torch.ones_like(of) * v, retain_graph=True)[0] for of in (out, theirs))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_autocast_leaves_the_bias_alone(axis, adding):
    tensors = case_of((3, 5), axis)
    bias = tensors["bias"].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention((3, 5), axis)(tensors["qkv"], bias=bias, backend="cpu")
    expected = attention((3, 5), axis)(tensors["qkv"].bfloat16(), bias=bias, backend="cpu")
    assert torch.equal(out, expected)
    grads = [torch.autograd.grad(of.float().square().sum(), bias)[0] for of in (out, expected)]
    assert grads[0].dtype == torch.float32 and torch.equal(*grads)


def test_transforms_see_the_reference(adding):
    qkv, bias = torch.randn(3, 2, 7, 3, 1, 8), torch.randn(3, 1, 3, 3)

    def attend(qkv, bias):
        return space_time_attention(qkv, (2, 3), "time", bias=bias)

    expected = torch.stack([attend(x, b) for x, b in zip(qkv, bias, strict=True)])
    torch.testing.assert_close(torch.func.vmap(attend)(qkv, bias), expected)
    step, other = 1e-3, torch.randn(1, 3, 3)
    _, tangent = torch.func.jvp(lambda b: attend(qkv[0].double(), b), (bias[0],), (other,))
    above, below = (attend(qkv[0].double(), bias[0] + sign * step * other) for sign in (1, -1))
    torch.testing.assert_close(tangent, (above - below) / (2 * step), rtol=1e-2, atol=1e-3)
    batched = torch.func.vmap(torch.func.grad(lambda b, x: attend(x, b).square().sum()))(bias, qkv)
    leaf = bias[1].clone().requires_grad_()
    (alone,) = torch.autograd.grad(attend(qkv[1], leaf).square().sum(), leaf)
    torch.testing.assert_close(batched[1], alone)


@pytest.mark.parametrize("valid", (None, [3, 1]))
def test_the_compiler_sees_one_operator(valid, adding):
    torch._dynamo.reset()
    tensors = case_of((3, 4), "time", head_dim=16)
    attend = partial(attention((3, 4), "time"), valid_frames=valid)
    inputs = [x.requires_grad_() for x in tensors.values()]
    compiled = torch.compile(lambda x, b: attend(x, bias=b), fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(attend(inputs[0], bias=inputs[1]).square().sum(), inputs)
    assert all(map(torch.equal, torch.autograd.grad(compiled(*inputs).square().sum(), inputs), eager))
    qkv, bias = (x.detach() for x in inputs)
    grid = Grid(3, 4, "time", 1, 0.25, valid_frames=valid, biased=True)
    check_ops(qkv, grid, "cpu", bias=bias)


@pytest.mark.parametrize(
    ("bias", "options", "message"),
    [
        (1.0, {}, r"bias must be a tensor of shape \(H, R, R\); got float"),
        (torch.ones(4, 4), {}, r"bias must have shape \(H, R, R\); got \(4, 4\)"),
        (torch.ones(2, 13, 13), {}, r"bias must have shape .* R rows of a group = \(2, 4, 4\); got \(2, 13, 13\)"),
        (torch.ones(1, 4, 4), {}, r"bias must have shape .* got \(1, 4, 4\)"),
        (torch.ones(2, 4, 4), {"prefix": "none"}, r"bias must have shape .* = \(2, 3, 3\); got \(2, 4, 4\)"),
        (torch.ones(2, 4, 4), {"axis": "space"}, r"bias must have shape .* = \(2, 5, 5\); got \(2, 4, 4\)"),
        (torch.ones(2, 4, 4), {"axis": "joint"}, r"bias must have shape .* = \(2, 13, 13\); got \(2, 4, 4\)"),
        (torch.ones(2, 4, 4).double(), {}, "bias must be float32 or of the dtype of qkv, torch.float32; got .*64"),
        (torch.ones(2, 4, 4).half(), {}, "bias must be float32 or of the dtype of qkv, torch.float32; got .*16"),
        (torch.ones(2, 4, 4, dtype=torch.bool), {}, "bias must be float32.* got torch.bool"),
        (torch.ones(2, 4, 4, device="meta"), {}, "bias must be on the device of qkv, cpu; got meta"),
        (torch.ones(2, 4, 4).to_sparse(), {}, "bias must be a dense tensor"),
    ],
)
def test_biases_that_are_none(bias, options, message):
    qkv = torch.randn(2, 13, 3, 2, 8)
    with pytest.raises((TypeError, ValueError), match=message):
        space_time_attention(qkv, (3, 4), **{"axis": "time", **options}, bias=bias)

"""Crossmodal attention in absorbed form against the direct form in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from hsta_kernels import BackendError, backend, backends
from hsta_kernels.ops import cross_modal_attention
from hsta_kernels.ops.cross_modal_attention import autograd
from hsta_kernels.ops.philox import philox
from tests.kernels import Kernel
from tests.ops.parity import assert_parity, assert_same_bits, run
from tests.tolerances import assert_close_to_reference, nearby

pytestmark = pytest.mark.usefixtures("poisoned_empty")

OPERATOR = backends.OPERATORS["cross_modal_attention"]
HEADS = 2
NAMES = ("query_token", "tokens", *(f"{x}_{y}" for x in ("norm", "q", "k", "v") for y in ("weight", "bias")))
SHAPES = dict(zip(NAMES, [(8, 32), (8, 9, 32), *[(32,)] * 2, *[(32, 32), (32,)] * 3], strict=True))
EXAMPLES = {
    "cross_modal_attention": (
        lambda *tensors, **named: cross_modal_attention(*tensors, **named, num_heads=HEADS),
        SHAPES,
    ),
    "cross_modal_attention_dropout": (
        lambda *tensors, **named: cross_modal_attention(
            *tensors, **named, num_heads=HEADS, dropout_rate=0.25, seed=seed(tensors or tuple(named.values()))
        ),
        SHAPES,
    ),
}


def seed(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.tensor(1 << 40, device=tensors[0].device)


def fitted(width: int, kernel: Kernel) -> int:
    """The next width that the backend has a kernel for."""
    return next(fit for fit in (96, 192, 384, 768) if fit >= min(width, 768)) if kernel.name == "cuda" else width


def arguments(batch: int, tokens: int, width: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """In float64; the tokens are a slice of a longer sequence, as in the model."""
    shapes = [(batch, width), (batch, tokens, width), *[(width,)] * 2, *[(width, width), (width,)] * 3]
    values = {name: torch.randn(shape, dtype=torch.float64) for name, shape in zip(NAMES, shapes, strict=True)}
    for name in ("q_weight", "k_weight", "v_weight"):
        values[name] *= width**-0.5
    for name in ("query_token", "tokens"):
        values[name] = values[name] * scale + 0.5 * scale  # a mean that LayerNorm must remove
    longer = torch.cat([values["query_token"][:, None], values["tokens"]], dim=1)
    return values | {"tokens": longer[:, 1:]}


def check(values64, heads: int, dtype: torch.dtype, kernel: Kernel, grad=None, near=nearby, **dropout) -> None:
    if grad is None:
        grad = torch.randn(values64["query_token"].shape, dtype=torch.float64)
    values = {key: value.to(kernel.device, dtype) for key, value in values64.items()}  # of the same strides
    function = partial(cross_modal_attention, num_heads=heads, **dropout)
    assert_parity(function, values, [grad.to(kernel.device, dtype)], kernel, zero=["grad of k_bias"], near=near)


SMALL = [(2, 17, 48, 3), (8, 1, 32, 1), (2, 33, 40, 5), (2, 33, 40, 1), (1, 20, 192, 12)]
OF_PROJECTIONS = [(18, 2, 72, 1), (3, 2, 136, 17)]  # more samples, features of a head and heads than come at a time
LARGE = [(2, 197, 96, 3), (1, 588, 768, 12), (4, 324, 192, 6)]


@pytest.mark.parametrize(("batch", "tokens", "width", "heads"), [*SMALL, *OF_PROJECTIONS, *LARGE])
def test_parity(batch, tokens, width, heads, dtype, kernel):
    if kernel.simulated and (batch, tokens, width, heads) in LARGE:
        pytest.skip("too large for what simulates a GPU")
    width = fitted(width, kernel)
    if kernel.name == "cuda" and (heads > 16 or width % heads):
        pytest.skip("is refused: tests/cuda_on_host/test_parity.py")
    check(arguments(batch, tokens, width), heads, dtype, kernel)


@pytest.mark.parametrize("rate", (0.1, 0.9))
@pytest.mark.parametrize(("batch", "tokens", "width", "heads"), [*SMALL, *LARGE, (3, 0, 24, 3), (8, 3, 32, 2)])
def test_parity_with_dropout(batch, tokens, width, heads, rate, dtype, kernel):
    dropout = {"dropout_rate": rate, "seed": torch.tensor([7 + (5 << 32)], device=kernel.device)}
    values = arguments(batch, tokens, width)
    if kernel.name == "cuda":
        with pytest.raises(BackendError, match=f"dropout_rate is {rate}; the kernels drop nothing"):
            check(values, heads, dtype, kernel, **dropout)
        return
    if kernel.simulated and (batch, tokens, width, heads) in LARGE:
        pytest.skip("too large for what simulates a GPU")
    check(values, heads, dtype, kernel, **dropout)


@pytest.mark.parametrize("heads", (1, 3))
def test_reference_drops_what_the_definition_says(heads):
    values, rate, seed = arguments(2, 9, 24), 0.4, (3 << 32) + 11
    rows = torch.cat([values["query_token"][:, None], values["tokens"]], 1)
    y = torch.nn.functional.layer_norm(rows, (24,), values["norm_weight"], values["norm_bias"], 1e-6)
    q, k, v = (y @ values[f"{name}_weight"].T + values[f"{name}_bias"] for name in "qkv")
    expected = torch.zeros(2, 24, dtype=torch.float64)
    for sample in range(2):
        for head in range(heads):
            columns = slice(head * 24 // heads, (head + 1) * 24 // heads)
            p = torch.softmax(k[sample, :, columns] @ q[sample, 0, columns] * (24 / heads) ** -0.5, 0)
            for row in range(10):
                counter = [torch.tensor(word) for word in (row // 4, head, 0, sample)]
                if philox(counter, torch.tensor(seed))[row % 4] >= rate * 2**32:
                    expected[sample, columns] += p[row] / (1 - rate) * v[sample, row, columns]
    with backend("reference"):
        out = cross_modal_attention(**values, num_heads=heads, dropout_rate=rate, seed=torch.tensor(seed))
    torch.testing.assert_close(out, expected)


def test_dropout_at_rate_0_is_none(kernel):
    values = arguments(2, 17, fitted(24, kernel))
    values = {key: value.to(kernel.device, kernel.dtype) for key, value in values.items()}
    plain = partial(cross_modal_attention, num_heads=3)
    dropped = partial(plain, dropout_rate=0, seed=torch.tensor(7, device=kernel.device))
    assert_same_bits(run(dropped, values, kernel.name), run(plain, values, kernel.name))


def test_a_mask_is_its_seeds():
    values = {key: value.float() for key, value in arguments(2, 17, 24).items()}
    call = partial(cross_modal_attention, **values, num_heads=3, dropout_rate=0.5)
    assert torch.equal(call(seed=torch.tensor(7)), call(seed=torch.tensor([7])))
    assert not torch.equal(call(seed=torch.tensor(7)), call(seed=torch.tensor(8)))
    torch.manual_seed(1)
    drawn = call()
    assert not torch.equal(drawn, call())
    torch.manual_seed(1)
    assert torch.equal(drawn, call())


@pytest.mark.parametrize("offset", (0.49, 3, 7, 9, 100, 1000))
def test_parity_of_rows_far_from_zero(offset, dtype, kernel):
    """Means of half a standard deviation, of several and of very many; rows of one value, whose variance is zero."""
    if kernel.simulated and offset not in (7, 100):
        pytest.skip("an offset of each kind is enough for what simulates a GPU: it takes half a minute")
    values = arguments(4, 65, 96)
    values["tokens"][:, ::2] += offset
    values["tokens"][:, 1::2] -= offset
    values["tokens"][:, 7] = offset
    # The means are to be removed without a trace, though rounding the rows would leave one: no nearby inputs.
    check(values, 3, dtype, kernel, near=torch.Tensor.double)


@pytest.mark.parametrize(
    ("batch", "tokens", "width", "heads"),
    [(2, 17, 48, 3), (8, 1, 32, 1), (1, 588, 768, 12), (3, 324, 192, 6), (2, 33, 40, 5), (5, 0, 20, 4), (1, 9, 7, 1)],
)
def test_inference(batch, tokens, width, heads, dtype, kernel):
    """Without gradients the projections may be kernels too."""
    if kernel.simulated and tokens > 100:
        pytest.skip("too large for what simulates a GPU")
    width, heads = fitted(width, kernel), heads if fitted(width, kernel) % heads == 0 else 4
    values = {key: value.to(kernel.device, dtype) for key, value in arguments(batch, 2 * tokens, width).items()}
    values["tokens"] = values["tokens"][:, tokens:]
    values["query_token"] = values["query_token"].repeat(1, 2)[:, width:]
    values["k_weight"] = values["k_weight"].T.contiguous().T
    first = values | {name: values[name][:1] for name in ("query_token", "tokens")}
    with torch.no_grad(), backend("reference"):
        exact = cross_modal_attention(**{key: value.double() for key, value in values.items()}, num_heads=heads)
        same = cross_modal_attention(**values, num_heads=heads)
    with torch.no_grad(), backend(kernel.name):
        ours = cross_modal_attention(**values, num_heads=heads)
        alone = cross_modal_attention(**first, num_heads=heads)
    assert_close_to_reference(ours, same, exact)
    if kernel.name != "cuda":  # there the projections are PyTorch's
        assert torch.equal(alone, ours[:1]), "a sample's result depends on its batch"


@pytest.mark.parametrize("width", (48, 1032))
@pytest.mark.parametrize("scale", (1e4, 1e-4))
def test_magnitudes(scale, width, kernel):
    check(arguments(2, 33, fitted(width, kernel), scale), 3, kernel.dtype, kernel)


def test_without_tokens_the_query_attends_to_itself(kernel):
    if kernel.name == "cuda":
        pytest.skip("nothing but rounding is left of some gradients: tests/cuda_on_host/test_parity.py has the others")
    values = {key: value.float().to(kernel.device) for key, value in arguments(3, 0, 24).items()}
    grad, function = torch.randn(3, 24).to(kernel.device), partial(cross_modal_attention, num_heads=3)
    ours, exact = (run(function, values, name, [grad]) for name in (kernel.name, "reference"))
    for key in ours:
        # The gradient of what determines the scores is 0: a difference of two sums of products, rounded differently.
        atol = 2e-6 if kernel.name == "cpu" else 1e-5
        torch.testing.assert_close(ours[key], exact[key], atol=atol, rtol=2e-5)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str, indirect=True)
def test_layouts(dtype, kernel):
    """Tokens in place or copied: time-major, not aligned, the same for all samples; a gradient that is one number."""
    width = fitted(24, kernel)
    values = {key: value.to(dtype) for key, value in arguments(2, 19, width).items()}
    tokens, query = values["tokens"], values["query_token"]
    wide = torch.full((2, 20, width + 5), float("nan"), dtype=dtype)
    unaligned = wide[:, 1:, 5:]
    unaligned.copy_(tokens)
    one, grad = torch.tensor(0.7, dtype=dtype).expand(2, width), torch.randn(2, width).to(dtype)
    for strided, of_query, incoming in (
        (tokens.transpose(0, 1).contiguous().transpose(0, 1), query[:1].expand(2, -1), grad),
        (unaligned, query.t().contiguous().t(), one),
        (tokens[:1].expand(2, -1, -1), unaligned[:, 3], one),
        (tokens.transpose(1, 2).contiguous().transpose(1, 2), query, grad),
    ):
        check(values | {"tokens": strided, "query_token": of_query}, 3, dtype, kernel, incoming)


def test_strided_tokens_give_the_bits_of_copies(kernel):
    w = fitted(16, kernel)
    wide = torch.randn(6, w + 24, 3 * w, device=kernel.device).to(kernel.dtype)
    values = {key: value.to(kernel.device, kernel.dtype) for key, value in arguments(2, 7, w).items()}
    one, function = torch.ones((), device=kernel.device).expand(2, w), partial(cross_modal_attention, num_heads=2)
    for tokens, query in (
        (wide[:2, 3:10, w : 2 * w], wide[:2, 0, 5 : w + 5]),
        (wide[:7, :2, 8 : w + 8].transpose(0, 1)[:, :7], wide[:2, 1, :w]),
        (wide[:1, :7, :w].expand(2, -1, -1), wide[0, 0, :w].expand(2, -1)),
        (wide[:2, :w, :7].transpose(1, 2), wide[0, :w, :2].T),
    ):
        strided = run(function, values | {"tokens": tokens, "query_token": query}, kernel.name, [one])
        copies = {"tokens": tokens.contiguous(), "query_token": query.contiguous()}
        copied = run(function, values | copies, kernel.name, [one.contiguous()])
        if kernel.device == "cpu":  # the gradients of weights are PyTorch's products, which round by layout
            copied = {key: copied[key] for key in ("out 0", "grad of tokens")}
        assert_same_bits(strided, copied)


def pooled(u, query_token, tokens, kernel: Kernel):
    return autograd.AbsorbedAttention.apply(
        u, query_token, tokens, u.new_zeros(u.shape[-1]), 1e-6, 0.0, None, kernel.name
    )


@pytest.mark.parametrize("width", (32, 776))
def test_a_sample_does_not_depend_on_its_batch(width, kernel):
    width = fitted(width, kernel)
    values = {key: value.to(kernel.device, kernel.dtype) for key, value in arguments(3, 60, width).items()}
    u = torch.linspace(-1, 1, width, device=kernel.device).expand(3, 1, width)
    tensors = {"u": u, "query_token": values["query_token"], "tokens": values["tokens"]}
    grad, function = torch.randn(3, 1, width, device=kernel.device), partial(pooled, kernel=kernel)
    together = run(function, tensors, kernel.name, [grad])
    alone = run(function, {key: tensor[1:2] for key, tensor in tensors.items()}, kernel.name, [grad[1:2]])
    assert_same_bits({key: result[1:2] for key, result in together.items()}, alone)


def test_gradients_of_a_sample_do_not_depend_on_its_batch(kernel):
    """Those of the whole operator, where products around absorbed attention are kernels backward, too."""
    if kernel.name != "triton":
        pytest.skip("the products are PyTorch's")
    values = {key: value.float().to(kernel.device) for key, value in arguments(18, 5, 48).items()}
    of_samples = ("query_token", "tokens")
    last = values | {name: values[name][17:] for name in of_samples}
    grad, function = torch.randn(18, 48, device=kernel.device), partial(cross_modal_attention, num_heads=3)
    together, again = (run(function, values, kernel.name, [grad]) for _ in range(2))
    assert_same_bits(together, again)
    alone = run(function, last, kernel.name, [grad[17:]])
    for key in ("out 0", *(f"grad of {name}" for name in of_samples)):
        assert torch.equal(together[key][17:], alone[key]), key


def test_reference_gradients_numerically():
    values = arguments(1, 5, 8)
    names = [name for name in NAMES if name != "k_bias"]

    def function(*tensors):
        return cross_modal_attention(**dict(zip(names, tensors, strict=True)), k_bias=values["k_bias"], num_heads=2)

    assert torch.autograd.gradcheck(function, [values[name].requires_grad_() for name in names])


def test_empty_batch(kernel):
    width = fitted(16, kernel)
    values = {key: value.to(kernel.device, kernel.dtype) for key, value in arguments(0, 7, width).items()}
    results = run(partial(cross_modal_attention, num_heads=2), values, kernel.name)
    assert results["out 0"].shape == (0, width)


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
        ({"dropout_rate": 1.0}, ValueError, "dropout_rate must be at least 0 and less than 1; got 1.0"),
        ({"dropout_rate": 0.5, "seed": 7}, TypeError, "seed must be an int64 tensor; got int"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    values = {key: value.float() for key, value in arguments(2, 7, 16).items()} | {"num_heads": 2}
    with pytest.raises(error, match=message):
        cross_modal_attention(**(values | change))


@pytest.mark.skipif(backends.cpu is None, reason="the CPU kernels are not built")
def test_no_tokens_may_have_any_strides():
    values = {key: value.float() for key, value in arguments(3, 0, 8).items()}
    values["tokens"] = torch.randn(3, 4, 16)[:, :0, ::2]
    with backend("cpu"):
        ours = cross_modal_attention(**values, num_heads=1)
    with backend("reference"):
        torch.testing.assert_close(ours, cross_modal_attention(**values, num_heads=1))

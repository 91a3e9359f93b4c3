"""Every CUDA kernel against the float64 reference, on the emulator (test_emulator.py says how) and on a GPU.

The emulator runs a GPU's threads one after the other, so shapes are small.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from hsta_kernels import BackendError, backend, backends
from hsta_kernels.ops import add_layer_norm, cross_modal_attention, space_time_attention
from hsta_kernels.ops.space_time_attention import autograd
from tests.ops import test_add_layer_norm as of_norm
from tests.ops import test_cross_modal_attention as of_cross_modal
from tests.ops import test_space_time_attention as of_attention
from tests.tolerances import assert_close_to_reference

if backends.cuda_emulated:
    from tests.cuda_on_host import counters

pytestmark = [
    pytest.mark.usefixtures("poisoned_empty"),
    *([] if backends.cuda_emulated else [pytest.mark.gpu]),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# grid, prefix, heads, head_dim, batch
SHAPES = [
    *((grid, prefix, 1, 40, 2) for grid, prefix in itertools.product(((1, 17), (3, 1), (3, 7)), (0, 1, 2))),
    *(((3, 9), 1, 2, head_dim, 1) for head_dim in (8, 16, 32, 64, 128)),
    *(((frames, 197), prefix, 1, 8, 1) for frames, prefix in ((1, 2), (3, 1), (7, 0))),  # many tiles
    ((7, 17), 1, 1, 16, 1),  # sequences that straddle squares, a split that is not full
    ((2, 70), 2, 1, 16, 1),
    ((16, 5), 1, 1, 16, 1),
    ((33, 2), 0, 1, 24, 1),
    ((64, 3), 2, 1, 32, 1),
    ((64, 1), 16, 1, 8, 1),
]


@pytest.fixture(params=("sm_86", "sm_80", "sm_90"))
def gpu(request) -> Iterator[str]:
    """By whose shared memory the kernels choose their form; a GPU has its own."""
    with counters.shared_memory_of(request.param) if backends.cuda_emulated else nullcontext():
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_over_time(dtype, device):
    for grid, prefix, heads, head_dim, batch in SHAPES:
        tokens = prefix + grid[0] * grid[1]
        qkv = torch.randn(batch, tokens, 3, heads, head_dim, dtype=torch.float64, device=device)
        grad = torch.randn(batch, tokens, heads, head_dim, dtype=torch.float64, device=device)
        of_attention.check(qkv, grid, "time", prefix, dtype, "cuda", grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_without_a_score_above_minus_infinity_weigh_nothing(dtype, device):
    """In the softmax of a prefix query, which is merged from those of blocks: of all positions of a block, of all but
    the prefix, of everything. Gradients of such keys are NaN in any case: zero times infinity."""
    grid, prefix = (7, 17), 1
    length = prefix + grid[0] * grid[1]
    qkv = torch.rand(3, length, 3, 1, 16, dtype=torch.float64, device=device) + 0.5
    patches = qkv[:, prefix:].unflatten(1, grid)
    patches[0, :, 9:, 1] = patches[1, :, :, 1] = qkv[2, :, 1] = -float("inf")

    def run(name, dtype):
        with backend(name), torch.no_grad():
            return space_time_attention(qkv.to(dtype), grid, "time", prefix)

    ours, same, exact = run("cuda", dtype), run("reference", dtype), run("reference", torch.float64)
    assert torch.equal(ours.isnan(), exact.isnan())
    finite = exact.isfinite()
    assert_close_to_reference(ours[finite], same[finite], exact[finite], "out")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_over_long_times(dtype, gpu, device):
    """Whose heads some GPUs take a span of columns at a time: of equal spans, and of a last one that is narrower."""
    for frames, patches, prefix, head_dim in ((64, 1, 2, 128), (64, 2, 0, 128), (47, 2, 1, 104), (64, 1, 16, 72)):
        length = prefix + frames * patches
        qkv = torch.randn(1, length, 3, 1, head_dim, dtype=torch.float64, device=device)
        of_attention.check(qkv, (frames, patches), "time", prefix, dtype, "cuda", qkv[:, :, 1])
        if dtype == torch.float32:
            of_attention.check(qkv * 1e4, (frames, patches), "time", prefix, dtype, "cuda", qkv[:, :, 1])


@pytest.mark.skipif(not backends.cuda_emulated, reason="a GPU's shared memory is what it is")
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_attention_over_time_gives_the_same_bits_in_spans(dtype, device):
    qkv, grad = torch.randn(1, 130, 3, 1, 128, device=device).to(dtype), torch.randn(1, 130, 1, 128, device=device)
    results = []
    for name in counters.SHARED_MEMORY:
        with counters.shared_memory_of(name):
            results.append(torch.cat([t.flatten() for t in of_attention.run(qkv, (64, 2), "time", 2, "cuda", grad)]))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("magnitude", (1e4, 1e-4))
def test_magnitudes(magnitude, dtype, device):
    if dtype == torch.float16 and magnitude > 1:
        magnitude = 30  # the scores' gradients, some magnitude squared, must stay below 65504
    qkv = torch.randn(2, 1 + 3 * 17, 3, 2, 16, dtype=torch.float64, device=device) * magnitude
    grad = torch.randn(2, 1 + 3 * 17, 2, 16, dtype=torch.float64, device=device)
    of_attention.check(qkv, (3, 17), "time", 1, dtype, "cuda", grad)


def test_layouts(device):
    """Views that are read in place, or copied where rows are not aligned or contiguous; gradients of any layout."""
    grid, length, heads, dim = (3, 5), 16, 2, 16
    base = torch.randn(2, length, 3, heads, dim, dtype=torch.float64, device=device)
    grad = torch.randn(length, heads, dim, 2, dtype=torch.float64, device=device).permute(3, 0, 1, 2)
    one = torch.tensor(0.7, dtype=torch.float64, device=device).expand(2, length, heads, dim)

    def sliced(t, first):  # a slice of a longer, wider tensor
        wide = torch.full((2, length + 3, 3, heads + 1, dim + 8), float("nan"), dtype=t.dtype, device=device)
        view = wide[:, 2 : 2 + length, :, :heads, first : first + dim]
        view.copy_(t)
        return view

    for strided, incoming in (
        (lambda t: t.permute(2, 0, 3, 1, 4).contiguous().permute(1, 3, 0, 2, 4), grad),
        (lambda t: sliced(t, 8), one),
        (lambda t: sliced(t, 3), grad),
        (lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2), one),
        (lambda t: t[:1].expand(2, -1, -1, -1, -1), grad),
    ):
        of_attention.check(base, grid, "time", 1, torch.float32, "cuda", incoming, strided)


def test_scale_and_nan(device):
    qkv = torch.randn(1, 16, 3, 1, 16, device=device)
    for scale in (0.0, -0.5):
        results = []
        for name in ("cuda", "reference"):
            with backend(name):
                results.append(space_time_attention(qkv, (3, 5), "time", 1, scale=scale))
        torch.testing.assert_close(*results)
    qkv[0, 3, 0] = float("nan")
    with backend("cuda"):
        out = space_time_attention(qkv, (3, 5), "time", 1)
    assert out[0, 3].isnan().all()
    assert out[0, 4:].isfinite().all()


def test_same_bits_alone_and_in_a_batch(device):
    qkv, grad = torch.randn(3, 1 + 3 * 9, 3, 2, 16, device=device), torch.randn(3, 1 + 3 * 9, 2, 16, device=device)
    together = of_attention.run(qkv, (3, 9), "time", 1, "cuda", grad)
    alone = of_attention.run(qkv[1:2], (3, 9), "time", 1, "cuda", grad[1:2])
    for batched, single in zip(together, alone, strict=True):
        assert torch.equal(batched[1:2], single)


def test_compile_and_opcheck(device):
    torch._dynamo.reset()
    qkv, grad = torch.randn(1, 16, 3, 1, 16, device=device), torch.randn(1, 16, 1, 16, device=device)
    expected = of_attention.run(qkv, (3, 5), "time", 1, "cuda", grad)
    compiled = torch.compile(space_time_attention, fullgraph=True, backend="aot_eager")
    leaf = qkv.clone().requires_grad_()
    with backend("cuda"):
        out = compiled(leaf, (3, 5), "time", 1)
    (grad_qkv,) = torch.autograd.grad(out, leaf, grad)
    assert torch.equal(out, expected[0]) and torch.equal(grad_qkv, expected[1])
    arguments = (3, 5, "time", 1, 0.25, "cuda")
    torch.library.opcheck(autograd._forward, (qkv, *arguments))
    out, stats = autograd._forward(qkv, *arguments)
    torch.library.opcheck(autograd._backward, (grad, qkv, out, stats, *arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("magnitude", (1.0, 1e4, 1e-4))
def test_add_layer_norm(magnitude, dtype, device):
    if dtype == torch.float16 and magnitude > 1:
        magnitude = 1e3
    for shape in ((2, 17, 48), (1, 8), (5, 768), (3, 2, 4, 40), (70, 8), (2, 1040)):
        rows = (torch.randn(shape, dtype=torch.float64, device=device) * magnitude + magnitude for _ in range(2))
        parameters = (torch.randn(shape[-1], dtype=torch.float64, device=device) for _ in range(2))
        tensors = [t.to(dtype) for t in (*rows, *parameters)]
        grads = [torch.randn(shape, dtype=torch.float64, device=device).to(dtype) for _ in range(2)]
        exact = of_norm.run([t.double() for t in tensors], "reference", [g.double() for g in grads])
        same, ours = of_norm.run(tensors, "reference", grads), of_norm.run(tensors, "cuda", grads)
        names = ("norm", "sum", "grad x", "grad residual", "grad weight", "grad bias")
        for name, a, b, c in zip(names, ours, same, exact, strict=True):
            assert_close_to_reference(a, b, c, f"{name} {shape}")


def test_add_layer_norm_layouts(device):
    """Rows that are slices, transposed, not aligned, the same for all; gradients that are one number, or transposed."""
    base, grad = torch.randn(2, 6, 4, 40, device=device), torch.randn(2, 4, 6, 40, device=device).transpose(1, 2)
    weight, bias = torch.randn(40, device=device), torch.randn(80, device=device)[::2]
    one = torch.tensor(0.7, device=device).expand(2, 6, 4, 40)
    wide = torch.full((2, 8, 4, 51), float("nan"), device=device)
    sliced, unaligned = wide[:, 1:7, :, :40], wide[:, 1:7, :, 11:]
    transposed = base.transpose(1, 2).contiguous().transpose(1, 2)
    for x, residual, grads in (
        (sliced, transposed, (grad, one)),
        (unaligned, base.transpose(-1, -2).contiguous().transpose(-1, -2), (one, grad)),
        (base[:1].expand(2, -1, -1, -1), base[..., :1, :].expand_as(base), (one, one)),
    ):
        if x.isnan().any():
            x.copy_(base)
        tensors = [x, residual, weight, bias]
        exact = of_norm.run([t.double() for t in tensors], "reference", [g.double() for g in grads])
        same, ours = of_norm.run(tensors, "reference", grads), of_norm.run(tensors, "cuda", grads)
        for result, (a, b, c) in enumerate(zip(ours, same, exact, strict=True)):
            assert_close_to_reference(a, b, c, f"result {result} for strides {x.stride()}")


def check_cross_modal_attention(values64: dict[str, torch.Tensor], heads: int, dtype: torch.dtype, grad=None) -> None:
    values = {key: value.to(dtype) for key, value in values64.items()}  # of the same strides
    if grad is None:
        grad = torch.randn_like(values["query_token"])
    exact = of_cross_modal.run({k: v.double() for k, v in values.items()}, heads, "reference", grad.double())
    same, ours = of_cross_modal.run(values, heads, "reference", grad), of_cross_modal.run(values, heads, "cuda", grad)
    assert not ours.pop("grad of k_bias").any()
    for key in ours:
        assert_close_to_reference(ours[key], same[key], exact[key], key)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "tokens", "width", "heads"),
    # one run of rows, several; widths between those of squares; as many heads as there may be
    [(2, 17, 48, 3), (3, 1, 32, 1), (1, 197, 96, 1), (2, 33, 40, 1), (1, 20, 192, 12), (1, 5, 400, 16)],
)
def test_cross_modal_attention(batch, tokens, width, heads, dtype, device):
    values64 = {key: value.to(device) for key, value in of_cross_modal.arguments(batch, tokens, width).items()}
    longer = torch.cat([values64["query_token"][:, None], values64["tokens"]], 1)
    values64["tokens"] = longer[:, 1:]  # a slice, as in the model
    check_cross_modal_attention(values64, heads, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("gpu", "batch", "tokens", "width", "heads"),
    [
        *((gpu, 2, 17, 768, 12) for gpu in ("sm_86", "sm_80")),  # in spans, where an sm_90 takes rows whole
        *((gpu, 1, 5, 1280, 16) for gpu in ("sm_86", "sm_80", "sm_90")),
        ("sm_86", 1, 17, 1288, 23),  # two squares of heads, two blocks a run
        ("sm_90", 1, 40, 136, 17),
        ("sm_90", 1, 97, 776, 2),  # two runs of rows
        ("sm_90", 2, 15, 1800, 3),
    ],
    indirect=["gpu"],
)
def test_crossmodal_wide_rows(batch, tokens, width, heads, dtype, gpu, device):
    values64 = {key: value.to(device) for key, value in of_cross_modal.arguments(batch, tokens, width).items()}
    check_cross_modal_attention(values64, heads, dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_crossmodal_layouts(dtype, device):
    """Tokens in place or copied: time-major, not aligned, the same for all samples; a gradient that is one number."""
    values64 = {key: value.to(device) for key, value in of_cross_modal.arguments(2, 19, 24).items()}
    tokens, query = values64["tokens"], values64["query_token"]
    wide = torch.full((2, 20, 29), float("nan"), dtype=torch.float64, device=device)
    unaligned = wide[:, 1:, 5:]
    unaligned.copy_(tokens)
    one = torch.tensor(0.7, dtype=dtype, device=device).expand(2, 24)
    for strided, of_query, grad in (
        (tokens.transpose(0, 1).contiguous().transpose(0, 1), query[:1].expand(2, -1), None),
        (unaligned, query.t().contiguous().t(), one),
        (tokens[:1].expand(2, -1, -1), unaligned[:, 3], one),
        (tokens.transpose(1, 2).contiguous().transpose(1, 2), query, None),
    ):
        check_cross_modal_attention(values64 | {"tokens": strided, "query_token": of_query}, 3, dtype, grad)


def test_without_tokens_the_query_attends_to_itself(device):
    values = {key: value.to(device).float() for key, value in of_cross_modal.arguments(2, 0, 24).items()}
    grad = torch.randn(2, 24, device=device)
    ours, exact = of_cross_modal.run(values, 3, "cuda", grad), of_cross_modal.run(values, 3, "reference", grad)
    for key in ours:
        # The gradient of what determines the scores is 0: a difference of two sums of products, rounded differently.
        torch.testing.assert_close(ours[key], exact[key], atol=1e-5, rtol=2e-5)


@pytest.mark.parametrize("width", (48, 1032))
@pytest.mark.parametrize("scale", (1e4, 1e-4))
def test_crossmodal_magnitudes(scale, width, device):
    values64 = {key: value.to(device) for key, value in of_cross_modal.arguments(2, 33, width, scale).items()}
    check_cross_modal_attention(values64, 3, torch.float32)


@pytest.mark.parametrize("width", (32, 776))
def test_crossmodal_sample_does_not_depend_on_its_batch(width, device):
    values = {key: value.to(device).float() for key, value in of_cross_modal.arguments(3, 60, width).items()}
    grad = torch.randn(3, width, device=device)
    alone = {k: v[1:2] if k in ("query_token", "tokens") else v for k, v in values.items()}
    outs = []
    for arguments, incoming in ((values, grad), (alone, grad[1:2])):
        u = torch.ones(len(incoming), 1, width, device=device) * torch.linspace(-1, 1, width, device=device)
        rows = arguments["query_token"].requires_grad_(), arguments["tokens"].requires_grad_()
        z = of_cross_modal.autograd.AbsorbedAttention.apply(u, *rows, values["k_bias"], 1e-6, "cuda")
        outs.append((z, *torch.autograd.grad(z, rows, incoming[:, None])))
    for together, single in zip(*outs, strict=True):
        assert torch.equal(together[1:2], single)


def test_empty_batches(device):
    qkv = torch.randn(0, 7, 3, 2, 8, device=device, requires_grad=True)
    values = {k: v.to(device).float().requires_grad_() for k, v in of_cross_modal.arguments(0, 7, 16).items()}
    rows, weight = torch.randn(0, 8, device=device, requires_grad=True), torch.ones(8, device=device)
    with backend("cuda"):
        outs = space_time_attention(qkv, (2, 3), "time"), cross_modal_attention(**values, num_heads=2)
        outs += add_layer_norm(rows, rows, weight, weight)
    sum(out.sum() for out in outs).backward()
    assert [out.shape for out in outs] == [(0, 7, 2, 8), (0, 16), (0, 8), (0, 8)]
    assert qkv.grad.shape == qkv.shape and rows.grad.shape == rows.shape


def of_zeros(zeros, width: int) -> list[torch.Tensor]:
    return [zeros(*value.shape) for value in of_cross_modal.arguments(1, 5, width).values()]


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda zeros: space_time_attention(zeros(1, 7, 3, 1, 8), (2, 3), "space"), "axis is 'space'"),
        (lambda zeros: space_time_attention(zeros(1, 65, 3, 1, 8), (65, 1), "time", 0), "there are 65 frames"),
        (lambda zeros: space_time_attention(zeros(1, 7, 3, 1, 12), (2, 3), "time"), "head_dim of 12"),
        (lambda zeros: space_time_attention(zeros(1, 7, 3, 1, 8).double(), (2, 3), "time"), "qkv is torch.float64"),
        (lambda zeros: cross_modal_attention(*of_zeros(zeros, 264), num_heads=33), "there are 33 heads"),
        (lambda zeros: cross_modal_attention(*of_zeros(zeros, 12), num_heads=1), "tokens has rows of 12"),
        (lambda zeros: add_layer_norm(*[zeros(2, 12)] * 2, *[zeros(12)] * 2), "x has rows of 12"),
    ],
)
def test_what_is_refused_is_refused_by_name(run, reason, device):
    with backend("cuda"), pytest.raises(BackendError, match=reason):
        run(lambda *shape: torch.zeros(shape, device=device))


@pytest.mark.skipif(not backends.cuda_emulated, reason="a GPU's shared memory is what it is")
def test_too_little_shared_memory_is_said(device):
    values = {key: value.float() for key, value in of_cross_modal.arguments(1, 5, 16).items()}
    needs = r"a block needs \d+ bytes of shared memory, and this GPU has 1000"
    with backend("cuda"), counters.shared_memory_limit(1000):
        with pytest.raises(RuntimeError, match=rf"space_time_attention .* 1 heads of 8 float32, forward: {needs}"):
            space_time_attention(torch.zeros(1, 6, 3, 1, 8, device=device), (2, 3), "time", 0)
        with pytest.raises(RuntimeError, match=rf"cross_modal_attention .* rows of 16 float32, 2 heads, .*: {needs}"):
            cross_modal_attention(**values, num_heads=2)

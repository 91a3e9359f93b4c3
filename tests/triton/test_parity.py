"""Every Triton kernel against the float64 reference: in the interpreter (see test_interpreter.py), and on a GPU.

The interpreter computes bfloat16 wrongly and takes a Python step for every operation of every program, so under it
bfloat16 is left out and shapes are small.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from hsta_kernels import backend, backends
from hsta_kernels.ops import add_layer_norm, bias_gelu, cross_modal_attention, space_time_attention
from hsta_kernels.ops.space_time_attention import autograd
from tests.ops import test_add_layer_norm as of_norm
from tests.ops import test_bias_gelu as of_gelu
from tests.ops import test_cross_modal_attention as of_cross_modal
from tests.ops import test_space_time_attention as of_attention
from tests.tolerances import assert_close_to_reference

pytestmark = [
    pytest.mark.usefixtures("poisoned_empty"),
    *([] if backends.triton_interpreted else [pytest.mark.gpu]),
]
DTYPES = (torch.float32, torch.float16, *(() if backends.triton_interpreted else (torch.bfloat16,)))
AXES = of_attention.AXES
# grid, prefix, heads, head_dim, batch
SHAPES = [
    *((grid, prefix, 1, 40, 2) for grid, prefix in itertools.product(((1, 17), (3, 1), (3, 7)), (0, 1, 2))),
    *(((3, 9), 1, 2, head_dim, 1) for head_dim in (8, 16, 32, 64, 128, 5)),
    ((7, 17), 1, 1, 16, 1),
    ((2, 70), 2, 1, 16, 1),
    ((16, 5), 1, 1, 16, 1),
    ((64, 3), 2, 1, 16, 1),
    ((1, 197), 1, 1, 8, 1),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", AXES)
def test_space_time_attention(axis, dtype, device):
    # The dtype changes a few casts, not the indexing: in the interpreter one dtype goes through all shapes.
    shapes = SHAPES[::3] if backends.triton_interpreted and dtype != torch.float32 else SHAPES
    for grid, prefix, heads, head_dim, batch in shapes:
        tokens = prefix + grid[0] * grid[1]
        qkv = torch.randn(batch, tokens, 3, heads, head_dim, dtype=torch.float64, device=device)
        grad = torch.randn(batch, tokens, heads, head_dim, dtype=torch.float64, device=device)
        of_attention.check(qkv, grid, axis, prefix, dtype, "triton", grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("magnitude", (1e4, 1e-4))
@pytest.mark.parametrize("axis", AXES)
def test_magnitudes(axis, magnitude, dtype, device):
    if dtype == torch.float16 and magnitude > 1:
        magnitude = 30  # the scores' gradients, some magnitude squared, must stay below 65504
    qkv = torch.randn(2, 1 + 3 * 17, 3, 2, 16, dtype=torch.float64, device=device) * magnitude
    grad = torch.randn(2, 1 + 3 * 17, 2, 16, dtype=torch.float64, device=device)
    of_attention.check(qkv, (3, 17), axis, 1, dtype, "triton", grad)


@pytest.mark.parametrize("axis", AXES)
def test_layouts(axis, device):
    """Views that are read in place, or copied where the last dimension is not contiguous; gradients of any layout."""
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
        of_attention.check(base, grid, axis, 1, torch.float32, "triton", incoming, strided)


@pytest.mark.parametrize("axis", AXES)
def test_scale_and_nan(axis, device):
    qkv = torch.randn(1, 16, 3, 1, 16, device=device)
    for scale in (0.0, -0.5):
        results = []
        for name in ("triton", "reference"):
            with backend(name):
                results.append(space_time_attention(qkv, (3, 5), axis, 1, scale=scale))
        torch.testing.assert_close(*results)
    qkv[0, 3, 0] = float("nan")
    with backend("triton"):
        out = space_time_attention(qkv, (3, 5), axis, 1)
    assert out[0, 3].isnan().all()
    assert out[0, 4:].isfinite().all()


@pytest.mark.parametrize("axis", AXES)
def test_same_bits_alone_and_in_a_batch(axis, device):
    qkv, grad = torch.randn(3, 1 + 3 * 9, 3, 2, 16, device=device), torch.randn(3, 1 + 3 * 9, 2, 16, device=device)
    together = of_attention.run(qkv, (3, 9), axis, 1, "triton", grad)
    alone = of_attention.run(qkv[1:2], (3, 9), axis, 1, "triton", grad[1:2])
    for batched, single in zip(together, alone, strict=True):
        assert torch.equal(batched[1:2], single)


@pytest.mark.parametrize("axis", AXES)
def test_compile_and_opcheck(axis, device):
    torch._dynamo.reset()
    qkv, grad = torch.randn(1, 16, 3, 1, 16, device=device), torch.randn(1, 16, 1, 16, device=device)
    expected = of_attention.run(qkv, (3, 5), axis, 1, "triton", grad)
    compiled = torch.compile(space_time_attention, fullgraph=True, backend="aot_eager")
    leaf = qkv.clone().requires_grad_()
    with backend("triton"):
        out = compiled(leaf, (3, 5), axis, 1)
    (grad_qkv,) = torch.autograd.grad(out, leaf, grad)
    assert torch.equal(out, expected[0]) and torch.equal(grad_qkv, expected[1])
    arguments = (3, 5, axis, 1, 0.25, "triton")
    torch.library.opcheck(autograd._forward, (qkv, *arguments))
    out, stats = autograd._forward(qkv, *arguments)
    torch.library.opcheck(autograd._backward, (grad, qkv, out, stats, *arguments))


def far_apart(tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """The same values, with more than 2³¹ elements, nearly none of them touched, from the first index of `dim` on."""
    strides = list(tensor.contiguous().stride())
    strides[dim] = (2**31 + 4096) // (tensor.shape[dim] - 1)
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True))
    return torch.empty(reach + 1, dtype=tensor.dtype).as_strided(tensor.shape, strides).copy_(tensor)


@pytest.mark.skipif(not backends.triton_interpreted, reason="reserves memory that a GPU would have to have")
def test_offsets_have_64_bits():
    """The interpreter gives a stride the bits that its value needs, not those that the kernel declares: parts of qkv,
    at one and two strides, are left out."""
    halves = {key: value.half() for key, value in of_cross_modal.arguments(2, 5, 16).items()}
    weight = torch.ones(16)

    def crossmodal(tokens):
        return of_cross_modal.run(halves | {"tokens": tokens}, 2, "triton", torch.ones(2, 16).half()).values()

    qkv, grad = torch.randn(2, 5, 3, 2, 8).half(), torch.randn(2, 5, 2, 8).half()
    rows = torch.randn(3, 16).half()
    cases = [
        *((lambda t, axis=axis: of_attention.run(t, (2, 2), axis, 1, "triton", grad), qkv, dim)
          for axis, dim in (("time", 0), ("time", 1), ("space", 1), ("joint", 3))),
        *((lambda g, axis=axis: of_attention.run(qkv, (2, 2), axis, 1, "triton", g), grad, 1)
          for axis in ("time", "space")),
        (crossmodal, halves["tokens"], 0),
        (crossmodal, halves["tokens"], 1),
        (lambda t: of_norm.run([t, t, weight.half(), weight.half()], "triton", [t, t]), rows, 0),
        (lambda t: of_gelu.run(t, weight.half(), t, "triton"), rows, 0),
    ]  # fmt: skip
    for run, tensor, dim in cases:
        for ours, expected in zip(run(far_apart(tensor, dim)), run(tensor), strict=True):
            assert torch.equal(ours, expected)


def test_layouts_of_the_other_operators(device):
    """Slices and stride 0 are read in place and give what copies of them give."""
    wide = torch.randn(6, 40, 48, device=device)
    values = {key: value.to(device).float() for key, value in of_cross_modal.arguments(2, 7, 16).items()}
    one = torch.ones((), device=device)
    for tokens, query in (
        (wide[:2, 3:10, 16:32], wide[:2, 0, 5:21]),
        (wide[:7, :2, 8:24].transpose(0, 1)[:, :7], wide[:2, 1, :16]),
        (wide[:1, :7, :16].expand(2, -1, -1), wide[0, 0, :16].expand(2, -1)),
        (wide[:2, :16, :7].transpose(1, 2), wide[0, :16, :2].T),
    ):
        strided = of_cross_modal.run(values | {"tokens": tokens, "query_token": query}, 2, "triton", one.expand(2, 16))
        copies = {"tokens": tokens.contiguous(), "query_token": query.contiguous()}
        copied = of_cross_modal.run(values | copies, 2, "triton", torch.ones(2, 16, device=device))
        assert all(torch.equal(strided[key], copied[key]) for key in copied)
    weight = torch.randn(16, device=device)
    for x, grad in (
        (wide[0, :, 16:32], wide[1, :, 8:24]),
        (wide[0, :, 3:19], one.expand(40, 16)),
        (wide[:1, 0, :16].expand(5, -1), wide[0, :16, :5].T),
        (wide[0, :16, :9].T, one.expand(9, 16)),
    ):
        strided = of_norm.run([x, x, weight, weight], "triton", [grad, grad])
        copied = of_norm.run([x.contiguous()] * 2 + [weight] * 2, "triton", [grad.contiguous()] * 2)
        assert all(torch.equal(a, b) for a, b in zip(strided, copied, strict=True))


def test_empty_batches(device):
    qkv = torch.randn(0, 7, 3, 2, 8, device=device, requires_grad=True)
    values = {k: v.to(device).float().requires_grad_() for k, v in of_cross_modal.arguments(0, 7, 16).items()}
    rows, weight = torch.randn(0, 8, device=device, requires_grad=True), torch.ones(8, device=device)
    with backend("triton"):
        outs = space_time_attention(qkv, (2, 3), "time"), cross_modal_attention(**values, num_heads=2)
        outs += *add_layer_norm(rows, rows, weight, weight), bias_gelu(rows, weight, 0.5)
    sum(out.sum() for out in outs).backward()
    assert [out.shape for out in outs] == [(0, 7, 2, 8), (0, 16), (0, 8), (0, 8), (0, 8)]
    assert qkv.grad.shape == qkv.shape and rows.grad.shape == rows.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "tokens", "width", "heads"),
    # one run of rows, several (33 tokens a head is more than 18), very many; widths between the pieces' powers of 2;
    # wider rows and more heads than a GPU's registers hold
    [
        (2, 17, 48, 3),
        (24, 1, 32, 1),
        (1, 130, 96, 3),
        (2, 33, 40, 1),
        (1, 40, 192, 12),
        (1, 540, 16, 1),
        (2, 19, 1064, 8),
        (2, 33, 96, 24),
    ],
)
def test_cross_modal_attention(batch, tokens, width, heads, dtype, device):
    values64 = {key: value.to(device) for key, value in of_cross_modal.arguments(batch, tokens, width).items()}
    values64["tokens"] = torch.cat([values64["tokens"][:, :1], values64["tokens"]], 1)[
        :, 1:
    ]  # a slice, as in the model
    values = {key: value.to(dtype) for key, value in values64.items()}
    grad = torch.randn(batch, width, dtype=torch.float64, device=device).to(dtype)
    exact = of_cross_modal.run({k: v.double() for k, v in values.items()}, heads, "reference", grad.double())
    same, ours = of_cross_modal.run(values, heads, "reference", grad), of_cross_modal.run(values, heads, "triton", grad)
    assert not ours.pop("grad of k_bias").any()
    for key in ours:
        assert_close_to_reference(ours[key], same[key], exact[key], key)


def test_crossmodal_sample_does_not_depend_on_its_batch(device):
    values = {key: value.to(device).float() for key, value in of_cross_modal.arguments(3, 60, 32).items()}
    grad = torch.randn(3, 32, device=device)
    alone = {k: v[1:2] if k in ("query_token", "tokens") else v for k, v in values.items()}
    outs = []
    for arguments, incoming in ((values, grad), (alone, grad[1:2])):
        u = torch.ones(len(incoming), 1, 32, device=device) * torch.linspace(-1, 1, 32, device=device)
        rows = arguments["query_token"].requires_grad_(), arguments["tokens"].requires_grad_()
        z = of_cross_modal.autograd.AbsorbedAttention.apply(u, *rows, values["k_bias"], 1e-6, "triton")
        outs.append((z, *torch.autograd.grad(z, rows, incoming[:, None])))
    for together, single in zip(*outs, strict=True):
        assert torch.equal(together[1:2], single)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 17, 48), (1, 3), (5, 768), (3, 2, 4, 40), (70, 8)])
@pytest.mark.parametrize("magnitude", (1.0, 1e4, 1e-4))
def test_add_layer_norm(shape, magnitude, dtype, device):
    if dtype == torch.float16 and magnitude > 1:
        magnitude = 1e3
    rows = (torch.randn(shape, dtype=torch.float64, device=device) * magnitude + magnitude for _ in range(2))
    parameters = (torch.randn(shape[-1], dtype=torch.float64, device=device) for _ in range(2))
    tensors = [t.to(dtype) for t in (*rows, *parameters)]
    grads = [torch.randn(shape, dtype=torch.float64, device=device).to(dtype) for _ in range(2)]
    exact = of_norm.run([t.double() for t in tensors], "reference", [g.double() for g in grads])
    same, ours = of_norm.run(tensors, "reference", grads), of_norm.run(tensors, "triton", grads)
    names = ("norm", "sum", "grad x", "grad residual", "grad weight", "grad bias")
    for name, a, b, c in zip(names, ours, same, exact, strict=True):
        assert_close_to_reference(a, b, c, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 17, 48), (9, 3), (5, 768), (3, 2, 4, 41), (40, 1)])
@pytest.mark.parametrize(("magnitude", "rate"), [(1.0, 0.0), (1.0, 0.3), (1e4, 0.0), (1e-4, 0.0)])
def test_bias_gelu(shape, magnitude, rate, dtype, device):
    if dtype == torch.float16 and magnitude > 1:
        magnitude = 1e3
    x, bias, grad = (torch.randn(s, dtype=torch.float64, device=device) for s in (shape, shape[-1:], shape))
    tensors = [t.to(dtype) for t in (x * magnitude, bias * magnitude, grad)]
    options = {"dropout_rate": rate, "seed": torch.tensor([-(2**40) - 5], device=device)}
    exact = of_gelu.run(*(t.double() for t in tensors), "reference", **options)
    same, ours = (of_gelu.run(*tensors, name, **options) for name in ("reference", "triton"))
    for name, a, b, c in zip(("out", "grad x", "grad bias"), ours, same, exact, strict=True):
        assert rate == 0 or torch.equal(a == 0, b == 0), f"{name}: another mask"
        assert_close_to_reference(a, b, c, name)


def test_strided_rows_of_bias_gelu(device):
    wide, bias = torch.randn(5, 100, device=device), torch.randn(32, device=device)
    one = torch.ones((), device=device).expand(5, 32)
    for x in (wide[:, 32:64], wide[:, 3:35], torch.randn(32, 5, device=device).T):
        strided, copied = (of_gelu.run(t, bias, one, "triton") for t in (x, x.contiguous()))
        assert all(torch.equal(a, b) for a, b in zip(strided, copied, strict=True))

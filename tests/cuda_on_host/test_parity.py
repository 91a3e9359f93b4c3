"""Every CUDA kernel against the float64 reference, on the emulator (test_emulator.py says how) and on a GPU.

The emulator runs a GPU's threads one after the other, so shapes are small.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from hsta_kernels import backend, backends
from hsta_kernels.ops import space_time_attention
from hsta_kernels.ops.space_time_attention import autograd
from tests.ops import test_add_layer_norm as of_norm
from tests.ops import test_space_time_attention as of_attention
from tests.tolerances import assert_close_to_reference

pytestmark = [
    pytest.mark.usefixtures("poisoned_empty"),
    *([] if backends.cuda_emulated else [pytest.mark.gpu]),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# grid, prefix, heads, head_dim, batch
SHAPES = [
    *((grid, prefix, 1, 40, 2) for grid, prefix in itertools.product(((1, 17), (3, 1), (3, 7)), (0, 1, 2))),
    *(((3, 9), 1, 2, head_dim, 1) for head_dim in (8, 16, 32, 64, 128)),
    ((7, 17), 1, 1, 16, 1),  # sequences that straddle squares, a slot that is not full
    ((2, 70), 2, 1, 16, 1),
    ((16, 5), 1, 1, 16, 1),
    ((33, 2), 0, 1, 24, 1),
    ((64, 3), 2, 1, 32, 1),
    ((64, 1), 16, 1, 8, 1),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_over_time(dtype, device):
    for grid, prefix, heads, head_dim, batch in SHAPES:
        tokens = prefix + grid[0] * grid[1]
        qkv = torch.randn(batch, tokens, 3, heads, head_dim, dtype=torch.float64, device=device)
        grad = torch.randn(batch, tokens, heads, head_dim, dtype=torch.float64, device=device)
        of_attention.check(qkv, grid, "time", prefix, dtype, "cuda", grad)


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

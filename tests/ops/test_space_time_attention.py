"""Every implementation of space-time attention against the float64 reference, and the reference against a loop."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hsta_kernels import BackendError, backend, backends
from hsta_kernels.ops import space_time_attention
from hsta_kernels.ops.space_time_attention import autograd
from tests.tolerances import assert_close_to_reference, nearby

pytestmark = pytest.mark.usefixtures("poisoned_empty")

KERNELS = [name for name in ("cpu",) if backends.unavailable(name) is None]
AXES = ("time", "space", "joint")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRIDS = ((1, 17), (3, 1), (7, 17), (16, 5), (2, 197))
SHAPES = [
    # grid, prefix, heads, head_dim, batch
    *((grid, prefix, 2, 40, 2) for grid, prefix in itertools.product(GRIDS, (0, 1, 2))),
    *(((3, 9), 1, 3, head_dim, 2) for head_dim in (8, 16, 32, 64, 128, 5)),
    ((64, 3), 1, 1, 32, 3),
    ((3, 196), 1, 12, 64, 1),
]


def run(qkv: torch.Tensor, grid, axis: str, prefix: int, name: str, grad: torch.Tensor | None = None):
    """Output and gradient of qkv."""
    qkv = qkv.detach().requires_grad_()
    with backend(name):
        out = space_time_attention(qkv, grid, axis, prefix)
    (grad_qkv,) = torch.autograd.grad(out, qkv, grad.to(out.dtype))
    return out.detach(), grad_qkv


def check(qkv64, grid, axis, prefix, dtype, kernel, grad64=None, strided=lambda t: t):
    if grad64 is None:
        grad64 = torch.randn(qkv64.shape[:2] + qkv64.shape[3:], dtype=torch.float64)
    # The float64 reference sees what the kernel sees: inputs already rounded to its dtype.
    qkv, grad = strided(qkv64.to(dtype)), grad64.to(dtype)
    exact = run(qkv.double(), grid, axis, prefix, "reference", grad.double())
    near = run(nearby(qkv), grid, axis, prefix, "reference", nearby(grad))
    same = run(qkv, grid, axis, prefix, "reference", grad)
    ours = run(qkv, grid, axis, prefix, kernel, grad)
    for name, a, b, c, d in zip(("out", "grad_qkv"), ours, same, exact, near, strict=True):
        assert_close_to_reference(a, b, c, f"{name} {axis} {grid} P={prefix}", d)


def looped(qkv: torch.Tensor, grid, axis: str, prefix: int) -> torch.Tensor:
    """Who sees whom, spelled out token by token."""
    frames, patches = grid
    out = torch.empty(qkv.shape[:2] + qkv.shape[3:], dtype=qkv.dtype)
    place = [None] * prefix + [(t, n) for t in range(frames) for n in range(patches)]
    for i, mine in enumerate(place):
        seen = [
            j for j, other in enumerate(place)
            if mine is None or other is None or axis == "joint" or mine[axis == "time"] == other[axis == "time"]
        ]  # fmt: skip
        for h in range(qkv.shape[3]):
            q, k, v = qkv[:, i, 0, h], qkv[:, seen, 1, h], qkv[:, seen, 2, h]
            p = torch.softmax((k @ q[..., None]).squeeze(-1) / math.sqrt(qkv.shape[4]), dim=-1)
            out[:, i, h] = (p[:, None] @ v).squeeze(1)
    return out


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("prefix", (0, 1, 2))
def test_reference_sees_what_the_definition_says(axis, prefix):
    qkv = torch.randn(2, prefix + 12, 3, 2, 8, dtype=torch.float64)
    with backend("reference"):
        out = space_time_attention(qkv, (3, 4), axis, prefix)
    torch.testing.assert_close(out, looped(qkv, (3, 4), axis, prefix))


@pytest.mark.parametrize("axis", AXES)
def test_reference_gradients_numerically(axis):
    qkv = torch.randn(1, 7, 3, 1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: space_time_attention(x, (2, 3), axis, 1), qkv)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", AXES)
def test_parity(axis, dtype, kernel):
    for grid, prefix, heads, head_dim, batch in SHAPES:
        qkv = torch.randn(batch, prefix + grid[0] * grid[1], 3, heads, head_dim, dtype=torch.float64)
        check(qkv, grid, axis, prefix, dtype, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("magnitude", (1e4, 1e-4))
@pytest.mark.parametrize("axis", AXES)
def test_magnitudes(axis, magnitude, dtype, kernel):
    if dtype == torch.float16 and magnitude > 1:
        magnitude = 30  # the scores' gradients, some magnitude squared, must stay below 65504
    # Large: one-hot rows. Small: uniform rows.
    qkv = torch.randn(2, 1 + 3 * 17, 3, 2, 16, dtype=torch.float64) * magnitude
    check(qkv, (3, 17), axis, 1, dtype, kernel)
    if magnitude == 1e4:  # probabilities come back as exactly 0 and 1
        out, exact = (
            run(qkv.to(dtype).to(of), (3, 17), axis, 1, name, torch.ones(2, 52, 2, 16))[0]
            for of, name in ((dtype, kernel), (torch.float64, "reference"))
        )
        assert torch.equal(out.double(), exact)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("axis", "grid_size", "prefix"), [("time", (1, 1), 40), ("time", (8, 3), 2), ("space", (2, 40), 1)]
)
def test_parity_of_saturated_prefix_queries(axis, grid_size, prefix, dtype, kernel):
    """A query that sees one key alone has no gradient: dp of that key and delta, from the output, are one number."""
    tokens = prefix + grid_size[0] * grid_size[1]
    qkv = (torch.randn(4, tokens, 3, 2, 64) * 1e3).to(dtype).requires_grad_()
    with backend(kernel):
        out = space_time_attention(qkv, grid_size, axis, prefix)
        (grad,) = torch.autograd.grad(out, qkv, torch.randn_like(out))
    assert not grad[:, :prefix, 0].any()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("axis", AXES)
def test_layouts(axis, kernel):
    grid, prefix, heads, dim = (3, 5), 1, 2, 16
    length = prefix + grid[0] * grid[1]
    base = torch.randn(2, length, 3, heads, dim, dtype=torch.float64)

    def permuted(t):  # stored (3, B, H, L, D)
        return t.permute(2, 0, 3, 1, 4).contiguous().permute(1, 3, 0, 2, 4)

    def sliced(t):  # a slice of a longer, wider tensor
        wide = torch.full((2, length + 3, 3, heads + 1, dim + 8), float("nan"), dtype=t.dtype)
        view = wide[:, 2 : 2 + length, :, :heads, 4 : 4 + dim]
        view.copy_(t)
        return view

    def columns(t):  # last dimension not contiguous
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)

    for strided in (permuted, sliced, columns):
        assert not strided(base).is_contiguous()
        check(base, grid, axis, prefix, torch.float32, kernel, strided=strided)

    expanded = base[:1].float().expand(2, -1, -1, -1, -1)
    exact = space_time_attention(expanded.contiguous(), grid, axis, prefix)
    assert torch.equal(space_time_attention(expanded, grid, axis, prefix), exact)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("axis", AXES)
def test_incoming_gradients_of_any_layout(axis, kernel):
    qkv = torch.randn(2, 16, 3, 2, 16, dtype=torch.float64)
    one = torch.tensor(0.7, dtype=torch.float64)
    check(qkv, (3, 5), axis, 1, torch.float32, kernel, grad64=one.expand(2, 16, 2, 16))
    check(
        qkv,
        (3, 5),
        axis,
        1,
        torch.float32,
        kernel,
        grad64=torch.randn(16, 2, 16, 2).double().permute(3, 0, 1, 2),
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_empty_batch(kernel):
    qkv = torch.randn(0, 7, 3, 2, 8, requires_grad=True)
    with backend(kernel):
        out = space_time_attention(qkv, (2, 3), "time")
    out.sum().backward()
    assert out.shape == (0, 7, 2, 8) and qkv.grad.shape == qkv.shape


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("axis", AXES)
def test_scale(axis, kernel):
    qkv = torch.randn(2, 16, 3, 2, 16)
    for scale in (0.0, 0.3, -0.5):
        results = []
        for name in (kernel, "reference"):
            with backend(name):
                results.append(space_time_attention(qkv, (3, 5), axis, 1, scale=scale))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("axis", AXES)
def test_nan_is_not_hidden(axis, kernel):
    qkv = torch.randn(1, 16, 3, 1, 8)
    qkv[0, 3, 0] = float("nan")
    with backend(kernel):
        out = space_time_attention(qkv, (3, 5), axis, 1)
    assert out[0, 3].isnan().all()
    assert out[0, 4:].isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("axis", AXES)
def test_same_bits_for_any_thread_count_and_batch(axis, kernel):
    qkv, grad = torch.randn(5, 1 + 3 * 37, 3, 4, 16), torch.randn(5, 1 + 3 * 37, 4, 16)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(run(qkv, (3, 37), axis, 1, kernel, grad))
    finally:
        torch.set_num_threads(threads)
    alone = run(qkv[3:4], (3, 37), axis, 1, kernel, grad[3:4])
    for part in range(2):
        assert torch.equal(results[0][part], results[1][part])
        assert torch.equal(results[0][part], results[2][part])
        assert torch.equal(results[0][part][3:4], alone[part])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("compiler", ("aot_eager", "inductor"))
def test_compile_without_graph_breaks(axis, compiler, kernel):
    torch._dynamo.reset()
    qkv, grad = torch.randn(2, 16, 3, 2, 16), torch.randn(2, 16, 2, 16)
    expected = run(qkv, (3, 5), axis, 1, kernel, grad)
    compiled = torch.compile(space_time_attention, fullgraph=True, backend=compiler)
    leaf = qkv.clone().requires_grad_()
    with backend(kernel):
        out = compiled(leaf, (3, 5), axis, 1)
    (grad_qkv,) = torch.autograd.grad(out, leaf, grad)
    assert torch.equal(out, expected[0]) and torch.equal(grad_qkv, expected[1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_export(kernel):
    class Module(torch.nn.Module):
        def forward(self, qkv):
            return space_time_attention(qkv, (3, 5), "space", 1)

    qkv = torch.randn(4, 16, 3, 2, 16)
    with backend(kernel):
        program = torch.export.export(Module(), (qkv[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
        assert torch.equal(program.module()(qkv), Module()(qkv))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("axis", AXES)
def test_opcheck(axis, kernel):
    qkv = torch.randn(2, 16, 3, 2, 16)
    grid = (3, 5, axis, 1, 0.25)
    torch.library.opcheck(autograd._forward, (qkv, *grid, kernel))
    out, stats = autograd._forward(qkv, *grid, kernel)
    torch.library.opcheck(autograd._backward, (torch.randn_like(out), qkv, out, stats, *grid, kernel))
    if axis != "joint":
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
        ({"qkv": [1.0]}, TypeError, "qkv must be a tensor"),
        ({"qkv": torch.zeros(1, 16, 3, 2)}, ValueError, r"qkv must have shape \(B, L, 3, H, D\)"),
        ({"qkv": torch.zeros(1, 16, 2, 2, 8)}, ValueError, r"qkv must have shape \(B, L, 3, H, D\)"),
        (
            {"qkv": torch.zeros(1, 16, 3, 2, 8, dtype=torch.int64)},
            TypeError,
            "qkv must be float32.*torch.int64",
        ),
        ({"qkv": torch.zeros(1, 15, 3, 2, 8)}, ValueError, r"1 \+ 3\*5 = 16 tokens.*got 15"),
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


@pytest.mark.skipif(not KERNELS, reason="the CPU kernels are not built: nothing to request")
def test_explicit_backend_says_why_it_cannot():
    with backend("cpu"), pytest.raises(BackendError, match="float64"):
        space_time_attention(torch.zeros(1, 16, 3, 2, 8, dtype=torch.float64), (3, 5), "time")

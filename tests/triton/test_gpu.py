"""What only a GPU shows: bit-for-bit repetition, grids and offsets past every limit, streams, graphs, memory errors."""

from __future__ import annotations

import pytest
import torch

from hsta_kernels import backend
from hsta_kernels.ops import add_layer_norm, bias_gelu, cross_modal_attention, space_time_attention
from tests.ops import test_cross_modal_attention as of_cross_modal
from tests.sanitizer import sanitized

pytestmark = pytest.mark.gpu
AXES = ("time", "space", "joint")
# PyTorch's names are mangled: _ZN...
OUR_KERNELS = (
    "^(time|flash|group|absorbed|absorb|project|query|row|merge|mean|sum|draw|normalize|norm|add_layer_norm|bias_gelu)_"
)


def gradient(qkv: torch.Tensor, grid, axis: str, prefix: int, name: str = "triton"):
    """Output, and gradient of qkv for an incoming gradient that is the output itself."""
    leaf = qkv.detach().requires_grad_()
    with backend(name):
        out = space_time_attention(leaf, grid, axis, prefix)
    (grad,) = torch.autograd.grad(out, leaf, out.detach())
    return out.detach(), grad


@pytest.mark.parametrize("axis", AXES)
def test_a_hundred_runs_give_the_same_bits(axis):
    qkv = torch.randn(4, 1 + 8 * 196, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    first = gradient(qkv, (8, 196), axis, 1)
    for _ in range(99):
        assert all(torch.equal(a, b) for a, b in zip(first, gradient(qkv, (8, 196), axis, 1), strict=True))


@pytest.mark.parametrize("axis", AXES)
def test_a_sample_does_not_depend_on_its_batch(axis):
    qkv = torch.randn(33, 1 + 8 * 196, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    for together, alone in zip(gradient(qkv, (8, 196), axis, 1), gradient(qkv[17:18], (8, 196), axis, 1), strict=True):
        assert torch.equal(together[17:18], alone)


@pytest.mark.parametrize("sequences", (70_000, 200_000))
@pytest.mark.parametrize("axis", ("time", "space"))
def test_many_sequences(axis, sequences):
    grid = (4, sequences) if axis == "time" else (sequences, 4)
    qkv = torch.randn(1, 4 * sequences, 3, 1, 32, device="cuda", dtype=torch.bfloat16)
    for ours, theirs in zip(gradient(qkv, grid, axis, 0), gradient(qkv, grid, axis, 0, "reference"), strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-2, rtol=3e-2)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ("time", "space"))
def test_more_than_2_31_elements(axis):
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")
    samples = 2**31 // (8 * 196 * 3 * 12 * 64) + 2
    qkv = torch.randn(samples, 8 * 196, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    assert qkv.numel() > 2**31
    out, grad = gradient(qkv, (8, 196), axis, 0)
    last = gradient(qkv[-1:], (8, 196), axis, 0)
    assert torch.equal(out[-1:], last[0]) and torch.equal(grad[-1:], last[1])


@pytest.mark.parametrize("axis", AXES)
def test_graph_capture_and_another_stream(axis):
    qkv = torch.randn(2, 1 + 8 * 49, 3, 4, 64, device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = gradient(qkv, (8, 49), axis, 1)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradient(qkv, (8, 49), axis, 1)
    for tensor in captured:
        tensor.fill_(float("nan"))
    graph.replay()
    for ours, theirs in zip(captured, expected, strict=True):
        assert torch.equal(ours, theirs)


def other_operators(width: int = 768, tokens: int = 588) -> list[torch.Tensor]:
    """Outputs and gradients of the operators other than attention."""
    torch.manual_seed(1)
    values = {k: v.cuda().bfloat16().requires_grad_() for k, v in of_cross_modal.arguments(9, tokens, width).items()}
    rows = torch.randn(5000, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    with backend("triton"):
        outs = (cross_modal_attention(**values, num_heads=12), *add_layer_norm(rows, rows, weight, weight))
        outs += (bias_gelu(rows, weight, 0.1, torch.tensor([5]).cuda()),)
    inputs = [*(v for k, v in values.items() if k != "k_bias"), rows, weight]
    return [*outs, *torch.autograd.grad(outs, inputs, outs)]


def test_the_other_operators_are_deterministic():
    first = other_operators()
    for _ in range(99):
        assert all(torch.equal(a, b) for a, b in zip(first, other_operators(), strict=True))


def test_the_other_operators_are_capturable():
    rows = torch.randn(500, 768, device="cuda", dtype=torch.bfloat16)
    tokens = torch.randn(3, 589, 768, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(768, device="cuda", dtype=torch.bfloat16)
    matrix = torch.randn(768, 768, device="cuda", dtype=torch.bfloat16)
    seed = torch.tensor([5], device="cuda")

    def run() -> list[torch.Tensor]:
        inputs = [t.detach().requires_grad_() for t in (rows, tokens, weight)]
        x, sequence, w = inputs
        with backend("triton"):
            crossmodal = cross_modal_attention(sequence[:, 0], sequence[:, 1:], w, w, *(matrix, w) * 3, num_heads=12)
            outs = (crossmodal, *add_layer_norm(x, x, w, w), bias_gelu(x, w, 0.1, seed))
        return [*outs, *torch.autograd.grad(outs, inputs, outs)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_every_device_gets_its_own_launch():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    qkv = torch.randn(1, 16, 3, 1, 32)
    one, two = (gradient(qkv.to(device), (3, 5), "time", 1) for device in ("cuda:0", "cuda:1"))
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(one, two, strict=True))


def test_compute_sanitizer_finds_nothing():
    """In our kernels: PyTorch's and cuBLAS's are not ours to answer for, and take most of the time."""
    code = (
        "import torch; from tests.triton.test_gpu import gradient, other_operators\n"
        "for axis in ('time', 'space', 'joint'):\n"
        "    gradient(torch.randn(2, 2 + 7 * 17, 3, 2, 40, device='cuda').half(), (7, 17), axis, 2)\n"
        "other_operators(72, 230)\n"
        "torch.cuda.synchronize()\n"
        "print('all done')\n"
    )
    options = ["--kernel-name", f"regex={OUR_KERNELS}", "--report-api-errors", "no", "--error-exitcode", "9"]
    for check, (status, text) in sanitized(code, {"memcheck": options, "racecheck": options}).items():
        assert status == 0, f"{check}: {text[-4000:]}"

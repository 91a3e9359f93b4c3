"""What only a GPU shows of the CUDA kernels: repetition, grids and offsets past every limit, graphs, memory errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch

from hsta_kernels import backend, backends
from hsta_kernels.ops import add_layer_norm, cross_modal_attention, space_time_attention
from tests.ops import test_cross_modal_attention as of_pooling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(backends.cuda is None, reason="the CUDA kernels are not built in this checkout"),
]


def gradient(qkv: torch.Tensor, grid, prefix: int, name: str = "cuda"):
    """Output, and gradient of qkv for an incoming gradient that is the output itself."""
    leaf = qkv.detach().requires_grad_()
    with backend(name):
        out = space_time_attention(leaf, grid, "time", prefix)
    (grad,) = torch.autograd.grad(out, leaf, out.detach())
    return out.detach(), grad


def the_other_operators(device: str = "cuda", tokens: int = 588, rows: int = 5000) -> list[torch.Tensor]:
    """Outputs and gradients of the other two, for incoming gradients that are the outputs."""
    torch.manual_seed(0)
    values = {k: v.to(device).bfloat16().requires_grad_() for k, v in of_pooling.arguments(9, tokens, 768).items()}
    x = torch.randn(rows, 768, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(768, device=device, dtype=torch.bfloat16, requires_grad=True)
    with backend("cuda"):
        outs = (cross_modal_attention(**values, num_heads=12), *add_layer_norm(x, x, weight, weight))
    inputs = [*(v for k, v in values.items() if k != "k_bias"), x, weight]
    return [*outs, *torch.autograd.grad(outs, inputs, outs)]


def test_automatic_choice_leaves_them_alone():
    assert backends.choose("space_time_attention", torch.zeros(1, 7, 3, 1, 8, device="cuda")) != "cuda"


def test_a_hundred_runs_give_the_same_bits():
    qkv = torch.randn(4, 1 + 8 * 196, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    first = gradient(qkv, (8, 196), 1)
    for _ in range(99):
        assert all(torch.equal(a, b) for a, b in zip(first, gradient(qkv, (8, 196), 1), strict=True))
    first = the_other_operators()
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, the_other_operators(), strict=True))


def test_a_sample_does_not_depend_on_its_batch():
    qkv = torch.randn(33, 1 + 8 * 196, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    for together, alone in zip(gradient(qkv, (8, 196), 1), gradient(qkv[17:18], (8, 196), 1), strict=True):
        assert torch.equal(together[17:18], alone)


@pytest.mark.parametrize("prefix", (0, 1))
@pytest.mark.parametrize("sequences", (70_000, 200_000))
def test_many_sequences(sequences, prefix):
    qkv = torch.randn(1, prefix + 4 * sequences, 3, 1, 32, device="cuda", dtype=torch.bfloat16)
    for ours, theirs in zip(
        gradient(qkv, (4, sequences), prefix), gradient(qkv, (4, sequences), prefix, "reference"), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=3e-2, rtol=3e-2)


@pytest.mark.slow
def test_more_than_2_31_elements():
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")
    samples = 2**31 // (8 * 196 * 3 * 12 * 64) + 2
    qkv = torch.randn(samples, 8 * 196, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    assert qkv.numel() > 2**31
    out, grad = gradient(qkv, (8, 196), 0)
    last = gradient(qkv[-1:], (8, 196), 0)
    assert torch.equal(out[-1:], last[0]) and torch.equal(grad[-1:], last[1])


def test_graph_capture_and_another_stream():
    qkv = torch.randn(2, 1 + 8 * 49, 3, 4, 64, device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = gradient(qkv, (8, 49), 1)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradient(qkv, (8, 49), 1)
    for tensor in captured:
        tensor.fill_(float("nan"))
    graph.replay()
    for ours, theirs in zip(captured, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_every_device_gets_its_own_launch():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    qkv = torch.randn(1, 16, 3, 1, 32)
    one, two = (gradient(qkv.to(device), (3, 5), 1) for device in ("cuda:0", "cuda:1"))
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("check", ("memcheck", "racecheck", "initcheck"))
def test_compute_sanitizer_finds_nothing(check):
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer is not installed on this machine")
    code = (
        "import torch; from tests.cuda.test_gpu import gradient, the_other_operators\n"
        "for dtype in (torch.half, torch.float):\n"
        "    gradient(torch.randn(2, 2 + 7 * 17, 3, 2, 40, device='cuda').to(dtype), (7, 17), 2)\n"
        "the_other_operators(tokens=300, rows=70)\n"
        "torch.cuda.synchronize()\n"
    )
    command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", code]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor an allocation of its own
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

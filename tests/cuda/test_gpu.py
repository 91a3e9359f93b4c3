"""What only a GPU shows of the CUDA kernels: repetition, grids and offsets past every limit, graphs, memory errors.

Parity on a GPU is in tests/ops and tests/cuda_on_host/test_parity.py.
"""

from __future__ import annotations

import re

import pytest
import torch

from hsta_kernels import backend, backends
from hsta_kernels.ops import add_layer_norm, cross_modal_attention, space_time_attention
from tests.kernels import Kernel
from tests.ops import attention as of_attention
from tests.ops import test_cross_modal_attention as of_cross_modal
from tests.sanitizer import sanitized

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(backends.cuda is None, reason="the CUDA kernels are not built in this checkout"),
]


def gradient(qkv: torch.Tensor, grid, prefix: int) -> list[torch.Tensor]:
    """Output, and gradient of qkv for an incoming gradient that is the output itself."""
    leaf = qkv.detach().requires_grad_()
    with backend("cuda"):
        out = space_time_attention(leaf, grid, "time", prefix)
    return [out.detach(), *torch.autograd.grad(out, leaf, out.detach())]


class TheOthers:
    """Inputs of the other two operators; a call gives outputs, and gradients for incoming ones that are the outputs."""

    def __init__(self, batch: int = 9, tokens: int = 588, rows: int = 5000) -> None:
        values = of_cross_modal.arguments(batch, tokens, 768)
        self.crossmodal = {key: value.cuda().bfloat16().requires_grad_() for key, value in values.items()}
        self.rows = torch.randn(rows, 768, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        self.weight = torch.ones(768, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def __call__(self) -> list[torch.Tensor]:
        with backend("cuda"):
            outs = (
                cross_modal_attention(**self.crossmodal, num_heads=12),
                *add_layer_norm(self.rows, self.rows, self.weight, self.weight),
            )
        inputs = [*(v for k, v in self.crossmodal.items() if k != "k_bias"), self.rows, self.weight]
        return [*outs, *torch.autograd.grad(outs, inputs, [out.detach() for out in outs])]


def assert_same(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_automatic_choice_leaves_them_alone():
    operator = backends.OPERATORS["space_time_attention"]
    assert operator.choose(*operator.example(lambda *shape: torch.zeros(shape, device="cuda"))) != "cuda"


def test_a_hundred_runs_give_the_same_bits():
    qkv = torch.randn(4, 1 + 8 * 196, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    others = TheOthers()
    first, first_others = gradient(qkv, (8, 196), 1), others()
    for _ in range(99):
        assert_same(gradient(qkv, (8, 196), 1), first)
        assert_same(others(), first_others)


def test_a_sample_does_not_depend_on_its_batch():
    qkv = torch.randn(33, 1 + 8 * 196, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    together = [result[17:18] for result in gradient(qkv, (8, 196), 1)]
    assert_same(gradient(qkv[17:18], (8, 196), 1), together)


@pytest.mark.parametrize("prefix", (0, 1))
@pytest.mark.parametrize("sequences", (70_000, 200_000))
def test_many_sequences(sequences, prefix):
    tokens = prefix + 4 * sequences
    qkv = torch.randn(1, tokens, 3, 1, 32, device="cuda", dtype=torch.float64)
    grad = torch.randn(1, tokens, 1, 32, device="cuda", dtype=torch.float64)
    of_attention.check(qkv, (4, sequences), "time", prefix, torch.bfloat16, Kernel("cuda", "cuda"), grad)


@pytest.mark.slow
def test_more_than_2_31_elements():
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")
    samples = 2**31 // (8 * 196 * 3 * 12 * 64) + 2
    qkv = torch.randn(samples, 8 * 196, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    assert qkv.numel() > 2**31
    last = [result[-1:] for result in gradient(qkv, (8, 196), 0)]
    assert_same(gradient(qkv[-1:], (8, 196), 0), last)


def test_graph_capture_and_another_stream():
    qkv = torch.randn(2, 1 + 8 * 49, 3, 4, 64, device="cuda", dtype=torch.bfloat16)
    others = TheOthers(batch=2, tokens=300, rows=70)

    def run() -> list[torch.Tensor]:
        return gradient(qkv, (8, 49), 1) + others()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for tensor in captured:
        tensor.detach().fill_(float("nan"))
    graph.replay()
    assert_same(captured, expected)


def test_nothing_synchronizes():
    qkv = torch.randn(2, 1 + 8 * 49, 3, 4, 64, device="cuda", dtype=torch.bfloat16)
    others = TheOthers(batch=2, tokens=300, rows=70)
    torch.cuda.set_sync_debug_mode("error")  # of PyTorch's calls; tests/cuda/test_build.py knows ours
    try:
        gradient(qkv, (8, 49), 1)
        others()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_every_device_gets_its_own_launch():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    qkv = torch.randn(1, 16, 3, 1, 32)
    one, two = (gradient(qkv.to(device), (3, 5), 1) for device in ("cuda:0", "cuda:1"))
    assert_same([result.cpu() for result in one], [result.cpu() for result in two])


def test_compute_sanitizer_finds_nothing():
    """In our kernels: what it says of PyTorch's and cuBLAS's is not ours to answer for."""
    code = (
        "import torch; from tests.cuda.test_gpu import TheOthers, gradient\n"
        "for dtype in (torch.half, torch.float):\n"
        "    gradient(torch.randn(2, 2 + 7 * 17, 3, 2, 40, device='cuda').to(dtype), (7, 17), 2)\n"
        "TheOthers(batch=2, tokens=300, rows=70)()\n"
        "torch.cuda.synchronize()\n"
        "print('all done')\n"
    )
    everything = ("--print-limit", "10000")
    ours = ("--kernel-name", "kns=4hsta", *everything)  # the namespace, in a mangled name
    # Memory that a kernel wrote which is not looked at would be uninitialized memory to initcheck.
    checks = {"memcheck": ours, "racecheck": ours, "initcheck": everything}
    for check, (_, text) in sanitized(code, checks).items():
        # A report is a line at the margin and indented lines below it, which name the kernel.
        reports = re.split(r"\n=========\s(?=\S)", text)
        of_ours = [report for report in reports if "hsta::" in report]
        assert not of_ours, f"{check}: {of_ours[0][:2000]}"

"""What only a GPU shows of the CUDA kernels: repetition, offsets past every limit, graphs, memory errors.

Parity on a GPU is in tests/ops and tests/cuda_on_host/test_parity.py.
"""

from __future__ import annotations

import re

import pytest
import torch

from hsta_kernels import backend, backends
from hsta_kernels.ops import cross_modal_attention
from hsta_kernels.ops.cross_modal_attention.autograd import AbsorbedAttention
from tests.ops import test_cross_modal_attention as of_cross_modal
from tests.sanitizer import sanitized

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(backends.cuda is None, reason="the CUDA kernels are not built in this checkout"),
]


class Operator:
    """Its inputs; a call gives the output, and gradients for an incoming one that is the output."""

    def __init__(self, batch: int = 9, tokens: int = 588) -> None:
        values = of_cross_modal.arguments(batch, tokens, 768)
        self.values = {key: value.cuda().bfloat16().requires_grad_() for key, value in values.items()}

    def __call__(self) -> list[torch.Tensor]:
        with backend("cuda"):
            out = cross_modal_attention(**self.values, num_heads=12)
        inputs = [value for key, value in self.values.items() if key != "k_bias"]
        return [out, *torch.autograd.grad(out, inputs, out.detach())]


def absorbed(u: torch.Tensor, query: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
    """z, and the gradients for an incoming one that is z."""
    leaves = [tensor.detach().requires_grad_() for tensor in (u, query, tokens)]
    z = AbsorbedAttention.apply(*leaves, u.new_zeros(u.shape[-1]), 1e-6, 0.0, None, "cuda")
    return [z.detach(), *torch.autograd.grad(z, leaves, z.detach())]


def random(batch: int, tokens: int, width: int) -> list[torch.Tensor]:
    rows = torch.randn(batch, tokens + 1, width, device="cuda", dtype=torch.bfloat16)
    return [torch.randn(batch, 2, width, device="cuda"), rows[:, 0], rows[:, 1:]]


def assert_same(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_automatic_choice_leaves_them_alone():
    operator = backends.OPERATORS["cross_modal_attention"]
    assert operator.choose(torch.zeros(1, 9, 96, device="cuda", dtype=torch.bfloat16), 2) != "cuda"


def test_a_hundred_runs_give_the_same_bits():
    operator = Operator()
    first = operator()
    for _ in range(99):
        assert_same(operator(), first)


def test_a_sample_does_not_depend_on_its_batch():
    tensors = random(33, 588, 768)
    together = [result[17:18] for result in absorbed(*tensors)]
    assert_same(absorbed(*(tensor[17:18] for tensor in tensors)), together)


@pytest.mark.slow
def test_more_than_2_31_elements():
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")
    tensors = random(2**31 // (588 * 768) + 2, 588, 768)
    assert tensors[2].numel() > 2**31
    last = [result[-1:] for result in absorbed(*tensors)]
    assert_same(absorbed(*(tensor[-1:] for tensor in tensors)), last)


def test_graph_capture_and_another_stream():
    operator = Operator(batch=2, tokens=300)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = operator()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operator()
    for tensor in captured:
        tensor.detach().fill_(float("nan"))
    graph.replay()
    assert_same(captured, expected)


def test_nothing_synchronizes():
    operator = Operator(batch=2, tokens=300)
    torch.cuda.set_sync_debug_mode("error")  # of PyTorch's calls; tests/cuda/test_build.py knows ours
    try:
        operator()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_every_device_gets_its_own_launch():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    tensors = random(2, 300, 96)
    one, two = (absorbed(*(tensor.to(device) for tensor in tensors)) for device in ("cuda:0", "cuda:1"))
    assert_same([result.cpu() for result in one], [result.cpu() for result in two])


def test_compute_sanitizer_finds_nothing():
    """In our kernels: what it says of PyTorch's and cuBLAS's is not ours to answer for."""
    code = (
        "import torch; from tests.cuda.test_gpu import Operator, absorbed, random\n"
        "absorbed(*random(2, 30, 96))\n"
        "Operator(batch=2, tokens=300)()\n"
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

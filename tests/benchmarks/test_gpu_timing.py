"""What is captured and how its time is divided, by a GPU that is made of two numbers: when the host and it are done."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_timing, report
from benchmarks.case import Case, operator_case, sdpa_takes
from benchmarks.contest import judge
from benchmarks.gpu_timing import Rotated, Timer, sets_of_inputs
from benchmarks.measuring import Timing, interleave
from benchmarks.record import Results

DEVICE = torch.device("cuda")


class FakeGPU:
    """Stands for torch.cuda. Times are in milliseconds, as those of CUDA's events."""

    def __init__(self) -> None:
        self.host = self.done = 0.0
        self.capturing: list[float] | None = None
        self.said: list[object] = []

    def launch(self, name: object, host: float, kernel: float) -> None:
        self.said.append(name)
        if self.capturing is not None:
            self.capturing.append(kernel)
            return
        self.host += host
        self.done = max(self.done, self.host) + kernel

    def synchronize(self, device: object = None) -> None:
        self.host = max(self.host, self.done)

    def CUDAGraph(self) -> SimpleNamespace:
        kernels: list[float] = []
        return SimpleNamespace(kernels=kernels, replay=lambda: self.launch("replay", 0.01, sum(kernels)))

    @contextmanager
    def graph(self, graph: SimpleNamespace, stream: object):
        self.capturing = graph.kernels
        try:
            yield
        finally:
            self.capturing = None

    def Event(self, enable_timing: bool) -> SimpleNamespace:
        event = SimpleNamespace(at=0.0, synchronize=self.synchronize)
        event.record = lambda: setattr(event, "at", max(self.host, self.done))
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def current_stream(self, device: object) -> None:
        return None

    Stream = current_stream

    def stream(self, stream: object):
        return nullcontext()

    def get_device_properties(self, device: object) -> SimpleNamespace:
        return SimpleNamespace(L2_cache_size=50 << 20)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    fake = FakeGPU()
    flush = SimpleNamespace(sum=lambda: fake.launch("flush", 0.0, 0.085))
    monkeypatch.setattr(gpu_timing, "cuda", fake)
    monkeypatch.setattr(gpu_timing, "_flush_buffer", lambda device: flush)
    monkeypatch.setattr(gpu_timing, "time", SimpleNamespace(perf_counter=lambda: fake.host / 1000))
    return fake


def test_kernels_are_timed_without_their_launches(gpu):
    """A kernel of 5 µs that the host launches in 90: events around it say 5 + 5, since the flush hides 85."""
    call = partial(gpu.launch, "ours", 0.09, 0.005)
    assert Timer(call, DEVICE).seconds() == pytest.approx(10e-6)
    timer = Timer(Rotated([call]), DEVICE)
    assert timer.how == "CUDA graph of 4 calls"
    gpu.said.clear()
    assert timer.seconds() == pytest.approx(5e-6)
    assert gpu.said == ["flush", "replay"]
    assert timer.from_the_host() == pytest.approx((95e-6, 90e-6))


def test_a_graph_has_every_set_of_inputs_and_each_has_run_before(gpu):
    timer = Timer(Rotated([partial(gpu.launch, i, 0.01, i) for i in range(1, 7)]), DEVICE)
    assert timer.how == "CUDA graph of 6 calls" and sorted(gpu.said) == sorted([1, 2, 3, 4, 5, 6] * 2)
    assert timer.seconds() == pytest.approx(3.5e-3)


def test_what_cannot_be_captured_says_so(gpu):
    def synchronizing() -> None:
        if gpu.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        gpu.launch("theirs", 0.01, 0.02)

    timer = Timer(Rotated([synchronizing]), DEVICE)
    assert timer.how == "CUDA events: not captured, operation not permitted when stream is capturing"
    assert timer.seconds() == pytest.approx(20e-6)
    assert Timer(partial(gpu.launch, "model", 0.0, 1.0), DEVICE).how == "CUDA events: not to be captured"


def test_a_result_has_both_times_and_how_they_were_taken(gpu, known_ceilings):
    ours = Rotated([partial(gpu.launch, "ours", 0.09, 0.005)])
    timings = interleave({"ours": ours, "SDPA": partial(gpu.launch, "SDPA", 0.01, 1)}, DEVICE, 0.0)
    expected = Timing(5e-6, 5e-6, 5e-6, 5, "CUDA graph of 4 calls", 95e-6, 90e-6)
    for field, value in vars(expected).items():
        assert getattr(timings["ours"], field) == (value if isinstance(value, str) else pytest.approx(value))
    case = Case("op", "work", torch.float32, DEVICE, ours, {}, bytes=1, facts={"SDPA takes": "FLASH_ATTENTION"})
    table = report.table(Results({}, [judge("name", case, timings, {}, {})]))
    assert table.endswith(
        "- name: a single call of ours takes 0.095 ms, its launches 0.09 ms of the host; SDPA takes FLASH_ATTENTION; "
        "ours by CUDA graph of 4 calls; SDPA by CUDA events: not to be captured"
    )


@pytest.mark.parametrize(("size", "sets"), [(1, 16), (10 << 20, 10), (60 << 20, 2), (100 << 20, 1), (1 << 30, 1)])
def test_inputs_are_together_twice_the_cache(size, sets, gpu):
    assert sets_of_inputs(DEVICE, size) == sets
    assert sets_of_inputs(torch.device("cpu"), size) == 1


def test_on_a_cpu_inputs_are_not_copied():
    x = torch.ones(3)
    case = operator_case("op", "work", lambda t: t, {}, [x], [x], False)
    assert case.ours() is x and not isinstance(case.ours, Rotated)


def test_what_sdpa_takes_is_asked_of_pytorch():
    q = torch.randn(1, 2, 8, 16)
    assert sdpa_takes(lambda attend: attend(q, q, q)) == "FLASH_ATTENTION"
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert sdpa_takes(lambda attend: (attend(q, q, q), attend(q, q, q))) == "MATH"

"""What is chosen for a launch, and how little Python it takes; no kernel runs and no GPU is needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed on this machine")

from hsta_kernels import backends

if backends.triton_interpreted:
    pytest.skip("Triton's launcher is replaced by its interpreter", allow_module_level=True)

from benchmarks.ahead_of_time import attention, float32_products, gelu, launches, norm, pooling
from hsta_kernels.ops import triton as launching

OPERATORS = {
    "time": attention("time", 8, 196, 1, 64),
    "space": attention("space", 8, 196, 1, 64),
    "pooling": pooling(588, 768),
    "norm": norm(1000, 768),
    "gelu": gelu(1000, 768, 0.1),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_launches_take_little_python(name):
    """From the second call on, the table is not searched again and few functions of ours run, both passes together."""
    package, calls = str(Path(launching.__file__).parents[1]), 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(package)

    def run():
        return launches(lambda: OPERATORS[name](torch.bfloat16), 90)

    run()
    searched = launching._row.cache_info().misses
    sys.setprofile(count)
    try:
        noted = run()
    finally:
        sys.setprofile(None)
    assert launching._row.cache_info().misses == searched
    assert calls <= 11 * len(noted)


@pytest.mark.parametrize(
    ("capability", "rows"), [((8, 0), 80), ((8, 6), 80), ((8, 9), 80), ((9, 0), 90), ((10, 0), 100), ((12, 0), 80)]
)
def test_every_gpu_has_configurations(capability, rows, monkeypatch):
    monkeypatch.setattr(launching, "_capability", lambda device: capability)
    assert launching.architecture(torch.device("cuda:0")) == rows


def test_old_gpus_are_refused(monkeypatch):
    """The reason names the argument; the GPU is asked for its capability once."""
    asked = []
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or (7, 5))
    launching._capability.cache_clear()
    for _ in range(3):
        assert launching._capability(torch.device("cuda:0")) == (7, 5)
    assert len(asked) == 1
    launching._capability.cache_clear()
    monkeypatch.setattr(launching, "_capability", lambda device: (7, 5))
    monkeypatch.setattr(backends, "triton_interpreted", True)
    assert launching.refuse("x", torch.zeros(2, 8), "bias_gelu_forward") == "x is on a GPU older than sm_80"


def test_float32_products_are_as_torch_is_set():
    for setting, expected in (("float32", "ieee"), ("tf32", "tf32")):
        with float32_products(setting):
            assert launching.precision(torch.float32) == expected
            assert launching.precision(torch.bfloat16) == "ieee"

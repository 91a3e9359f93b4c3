"""For which tensors a patched model is given to the kernels."""

from __future__ import annotations

import pytest
import torch

from hsta_kernels import backends
from hsta_kernels.patching.kernels import has_kernels


@pytest.mark.skipif(backends.cpu is None, reason="the CPU kernels are not built")
def test_what_the_cpu_kernels_take():
    assert has_kernels(torch.zeros(1, 2, 5, 64)) and has_kernels(torch.zeros(1, 5, 1024), 64)
    assert not has_kernels(torch.zeros(1, 2, 5, 64, dtype=torch.float64))


def test_what_the_kernels_of_a_gpu_take(monkeypatch):
    """As on a GPU, where there are no others, the width of a head decides, and not that of all."""
    pytest.importorskip("triton", reason="Triton is not installed on this machine")
    monkeypatch.setattr(backends, "_cpu_error", "there is a GPU")
    monkeypatch.setattr(backends, "triton_interpreted", True)  # so that tensors on the CPU are taken
    assert has_kernels(torch.zeros(1, 2, 5, 64)) and has_kernels(torch.zeros(1, 5, 1024), 64)
    assert has_kernels(torch.zeros(1, 16, 1280), 160)  # AnimateDiff's
    assert not has_kernels(torch.zeros(1, 5, 1024))
    assert not has_kernels(torch.zeros(1, 2, 5, 64, dtype=torch.float64))

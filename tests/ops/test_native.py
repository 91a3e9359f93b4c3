"""The native code below the operators: its exponential, its instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hsta_kernels import backends

pytestmark = pytest.mark.skipif(backends.native is None, reason="the native kernels are not built on this machine")


def exp2(x: torch.Tensor) -> torch.Tensor:
    y = torch.full_like(x, float("nan"))
    backends.native.exp2(x.data_ptr(), y.data_ptr(), x.numel())
    return y


def test_exponential_keeps_its_error_bound():
    x = torch.linspace(-126, 0, 2_000_003)
    exact = x.double().exp2()
    assert ((exp2(x).double() - exact).abs() / exact).max() < 2**-22


def test_exponential_at_its_ends():
    x = torch.tensor([0.0, -0.0, -1.0, -126.0, -150.0, float("-inf"), float("nan")])
    assert exp2(x)[:6].tolist() == [1.0, 1.0, 0.5, 2.0**-126, 0.0, 0.0]
    assert exp2(x)[6].isnan()


@pytest.mark.parametrize("isa", backends.native.runnable_cpu_isas().split()[1:] if backends.native else [])
def test_parity_suite_on_every_instruction_set(isa):
    """The instruction set is chosen once a process, so each of the others gets a process of its own."""
    here = os.path.dirname(__file__)
    files = [os.path.join(here, "test_space_time_attention.py"), os.path.join(here, "test_native.py")]
    select = "(test_parity or exponential) and not every_instruction_set"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", select, *files]
    done = subprocess.run(command, env=os.environ | {"HSTA_CPU_ISA": isa}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

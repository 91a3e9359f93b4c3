"""The kernels in Triton's interpreter, in processes that ask for it before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels import suites

HERE = Path(__file__).resolve().parent
SUITES = [
    *suites("triton"),
    *("ops/test_compiler.py", "triton/test_parity.py", "triton/test_special_values.py"),
    *("triton/test_integration.py", "triton/test_traffic.py"),
]


@pytest.mark.parametrize("suite", SUITES)
def test_in_the_interpreter(suite):
    pytest.importorskip("triton", reason="Triton is not installed on this machine")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{suite}"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout.splitlines()[-1], "nothing ran"

"""The emulator finds what it is there to find: each planted fault goes red, and its absence stays green."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cuda_on_host.compiling import HERE, compiled, emulated
from tests.kernels import suites

SEEDS = range(5)
PARITY = (*suites("cuda"), "ops/test_compiler.py", "cuda_on_host/test_parity.py")
FAULTS = {
    "race": "wrong results",
    "missing wait": "wrong results",
    "early overwrite": "wrong results",
    "copy on its way": "a bulk copy is on its way",
    "bytes that never come": "waits at",
    "overwritten before it is stored": "wrong results",
    "race in a cluster": "wrong results",
    "left too early": "wrong results",
    "out of bounds": "heap-buffer-overflow",
    "out of shared memory": "heap-buffer-overflow",
    "misaligned": "misaligned load",
    "divergent": "divergent barrier",
    "another barrier": "divergent barrier",
    "half a warp": "divergent barrier",
}


@pytest.fixture(scope="module")
def planted() -> Path:
    return compiled("planted", [HERE / "planted.cpp"])


def complaints(program: Path, fault: str) -> list[str]:
    """What each seed's failing run has to say."""
    found = []
    for seed in SEEDS:
        environment = os.environ | {"HSTA_FIBER_SEED": str(seed)}
        done = subprocess.run([program, fault], env=environment, capture_output=True, text=True, check=False)
        found.append(done.stderr if done.returncode else "")
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_goes_red(fault, planted):
    assert all(FAULTS[fault] in text for text in complaints(planted, fault))


@pytest.mark.parametrize("fault", FAULTS)
def test_without_it_all_is_green(fault, planted):
    assert not any(complaints(planted, f"no {fault}"))


@pytest.mark.parametrize(
    ("seed", "suites"),
    [
        (0, (*PARITY, "cuda_on_host/test_traffic.py", "cuda_on_host/test_launches.py")),
        (1, PARITY),  # in another order of threads
        *(pytest.param(seed, PARITY, marks=pytest.mark.slow) for seed in range(2, 6)),
    ],
)
def test_kernels_on_the_emulator(seed, suites):
    arguments = [f"tests/{name}" if name.endswith(".py") else name for name in suites]
    done = emulated(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments], seed)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

"""The kernels with Triton 3.6, which comes with PyTorch 2.11: what it compiles spills nothing, what it says is right.

Configurations differ by version of Triton (`SINCE` in triton_table.py), and what the newest one holds in registers an
older one may spill. It is installed in a folder of its own, once, and taken by processes of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from hsta_kernels import backends
from tests.kernels import suites

ROOT = Path(__file__).resolve().parents[2]
VERSION = "3.6.0"
PACKAGES = (f"triton=={VERSION}", "numpy<2.4")  # which its interpreter needs
FOLDER = ROOT / "build" / f"triton-{VERSION}"

if not backends._triton_installed or backends.triton_interpreted:
    pytest.skip("Triton is not there: not installed, or replaced by its interpreter", allow_module_level=True)


@pytest.fixture(scope="module")
def older() -> dict[str, str]:
    """An environment in which Triton is the older one."""
    FOLDER.parent.mkdir(exist_ok=True)
    with FileLock(f"{FOLDER}.lock"):
        if not FOLDER.exists():
            partial = Path(f"{FOLDER}.partial")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--upgrade"]
            command += ["--disable-pip-version-check", "--target", str(partial), *PACKAGES]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"pip cannot get Triton {VERSION}: {done.stderr.strip()[-300:]}")
            partial.rename(FOLDER)
    path = os.pathsep.join([str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *arguments: str) -> None:
    code = "import pytest, sys, triton; print('Triton', triton.__version__); sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.startswith(f"Triton {VERSION}\n")
    assert " passed" in done.stdout.splitlines()[-1], "nothing ran"


def test_no_spills(older):
    run(older, "tests/triton/test_ahead_of_time.py", "-k", "another_version")


def test_parity_in_the_interpreter(older):
    """Of all operators, forward and backward, in small shapes."""
    run(older | {"TRITON_INTERPRET": "1"}, *(f"tests/{file}" for file in suites("triton")), "-k", "layouts or strided")

"""The kernels with older Tritons: what they compile spills nothing, and what they say is right.

3.6 comes with PyTorch 2.11, 3.2, the oldest that is taken, with PyTorch 2.6.

Configurations differ by version of Triton (`SINCE` in triton_table.py), and what the newest one holds in registers an
older one may spill. Each is installed in a folder of its own, once, and taken by processes of their own.
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
OLDEST, VERSION = "3.2.0", "3.6.0"

if not backends._triton_installed or backends.triton_interpreted:
    pytest.skip("Triton is not there: not installed, or replaced by its interpreter", allow_module_level=True)


def installed(version: str) -> dict[str, str]:
    """An environment in which Triton is of this version."""
    folder = ROOT / "build" / f"triton-{version}"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = Path(f"{folder}.partial")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--upgrade"]
            command += ["--disable-pip-version-check", "--target", str(partial)]
            command += [f"triton=={version}", "numpy<2.4"]  # which its interpreter needs
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"pip cannot get Triton {version}: {done.stderr.strip()[-300:]}")
            partial.rename(folder)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run(version: str, environment: dict[str, str], *arguments: str) -> None:
    code = "import pytest, sys, triton; print('Triton', triton.__version__); sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "-q", "-p", "no:cacheprovider", *arguments]
    environment = installed(version) | environment
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.startswith(f"Triton {version}\n")
    assert " passed" in done.stdout.splitlines()[-1], "nothing ran"


# Of the oldest, which does not know sm_100, the first of each kernel, for the time it takes.
@pytest.mark.parametrize(("version", "sample"), [(VERSION, ""), (OLDEST, " and 90-bfloat16")])
def test_no_spills(version, sample):
    run(version, {}, "tests/triton/test_ahead_of_time.py", "-k", f"another_version{sample}")


@pytest.mark.parametrize("version", [VERSION, OLDEST])
def test_parity_in_the_interpreter(version):
    """Of all operators, forward and backward, in small shapes."""
    files = (f"tests/{file}" for file in suites("triton"))
    run(version, {"TRITON_INTERPRET": "1"}, *files, "-k", "layouts or strided")

"""The same tests with the transformers of a year before, from a folder of its own that `make test` fills."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "transformers-4.57"


@pytest.mark.skipif(not FOLDER.exists(), reason=f"there is no {FOLDER.relative_to(ROOT)}: `make test` installs it")
def test_patching_with_an_older_transformers():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])}
    version = subprocess.run(
        [sys.executable, "-c", "import transformers; print(transformers.__version__)"],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert version.startswith("4.57.")
    tests = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("timesformer", "attention_interface")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout.splitlines()[-1]

"""Tests with libraries in folders of their own that `make test` fills: transformers of a year before, and timm.

timm imports torchvision, which transformers and diffusers, too, would import if it lay beside them, and on PyTorch's
build for processors it does not import by itself: tests/patching/test_timm_attention.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("folder", "library", "version", "tests"),
    [
        (
            "transformers-4.57",
            "transformers",
            "4.57.",
            ("timesformer", "attention_interface", "vjepa2", "encoder_layers"),
        ),
        ("timm", "timm", "1.0.", ("timm_attention",)),
    ],
    ids=("transformers", "timm"),
)
def test_patching_with_a_library_of_its_own_folder(folder, library, version, tests):
    path = ROOT / "build" / folder
    if not path.exists():
        pytest.skip(f"there is no {path.relative_to(ROOT)}: `make test` installs it")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])}
    found = subprocess.run(
        [sys.executable, "-c", f"from importlib.metadata import version; print(version({library!r}))"],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert found.startswith(version)
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout.splitlines()[-1]

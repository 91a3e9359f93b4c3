"""compute-sanitizer over a program, several checks at a time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest


def sanitized(code: str, checks: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, str]]:
    """Exit status and output of compute-sanitizer for each of `checks`, a name with options of its own.

    The program ends by printing "all done". Skips where the tool is not installed or does not know the GPU.

    Raises:
        AssertionError: the program did not come to its end, or a check says nothing of what it found.
    """
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer is not installed on this machine")
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor an allocation of its own
    runs = {}
    for check, options in checks.items():
        command = [tool, "--tool", check, *options, sys.executable, "-c", code]
        runs[check] = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    said = {check: run.communicate()[0] for check, run in runs.items()}
    if any("Device not supported" in text for text in said.values()):
        pytest.skip("compute-sanitizer does not support this machine's GPU")
    for check, text in said.items():
        assert "all done" in text and re.search("(ERROR|RACECHECK) SUMMARY", text), f"{check}: {text[-2000:]}"
    return {check: (run.returncode, said[check]) for check, run in runs.items()}

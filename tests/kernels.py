"""How each backend's kernels are run: as they are, on a GPU, or on the CPU by what stands in for a GPU.

A test that takes `kernel` states what is right for all of them, and runs once for each backend of its operator.
Triton's interpreter and the emulator of CUDA each take a process of their own (tests/triton/test_interpreter.py,
tests/cuda_on_host/test_emulator.py), where theirs is the only kernel.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from hsta_kernels import backends

EMULATED = "HSTA_EMULATED_CUDA"  # tells the emulator's process where the CUDA kernels compiled for the host are
if EMULATED in os.environ:
    spec = importlib.util.spec_from_file_location("_cuda", os.environ[EMULATED])
    backends.cuda = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backends.cuda)
    backends.cuda_emulated = True

if backends.triton_interpreted:
    from triton.runtime import interpreter

    # What takes half of the interpreter's time and does nothing. At every call of a function by a kernel Triton
    # searches its language for what the interpreter replaces: once a function is enough, if what was replaced stays, as
    # it does in older versions. And for each sum of integers it computes whether it overflows, but asserts so in its
    # debug mode alone.
    interpreter._patch_lang = functools.cache(interpreter._patch_lang)
    if hasattr(interpreter, "_LangPatchScope"):
        interpreter._LangPatchScope.restore = lambda scope: None
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Arguments of space_time_attention that a backend's kernels have not.
LACKING = {"cpu": (), "triton": ("bias",), "cuda": ()}
SIMULATED = "triton" if backends.triton_interpreted else "cuda" if backends.cuda_emulated else None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A backend, and the device that its tensors are on. What simulates a GPU has time for small cases alone."""

    name: str
    device: str
    simulated: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """float32, but bfloat16 where half types alone are taken."""
        return torch.bfloat16 if self.name == "cuda" else torch.float32

    @property
    def half(self) -> torch.dtype:
        """bfloat16, but float16 where it is computed wrongly: in Triton's interpreter."""
        return torch.float16 if self.simulated and self.name == "triton" else torch.bfloat16

    def __str__(self) -> str:
        return self.name


def kernels(names: Iterable[str]) -> list[Any]:
    """Parameters: those of the backends `names` that run in this process, or would if there were a GPU."""
    if SIMULATED is not None:
        return [pytest.param(Kernel(name, "cpu", simulated=True), id=name) for name in names if name == SIMULATED]
    parameters = []
    for name in names:
        reason = backends.unavailable(name)
        marks = [pytest.mark.skipif(reason is not None, reason=f"{name}: {reason}")]
        if name != "cpu":
            marks.append(pytest.mark.gpu)
        parameters.append(pytest.param(Kernel(name, "cpu" if name == "cpu" else "cuda"), id=name, marks=marks))
    return parameters


def suites(backend: str) -> list[str]:
    """Paths from tests/ of the test files that have something to run on `backend`.

    Of its operators, ops/test_<operator>.py and those whose names go on after it, but for features it has not.
    """
    here = Path(__file__).parent
    return [
        str(file.relative_to(here))
        for name, operator in backends.OPERATORS.items()
        if backend in operator.implementations
        for file in sorted(here.glob(f"ops/test_{name}*.py"))
        if not file.stem.endswith(LACKING[backend])
    ]

"""The operators' benchmarks, one file an operator, found by the operators' names.

Each has `works(device, quick)`, which yields its cases, and beside them what a user could pick instead.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator

import torch

from benchmarks.case import Work
from hsta_kernels.backends import OPERATORS


def missing() -> dict[str, str]:
    """The operators that have no benchmark, and what to do about it."""
    names = (name for name in OPERATORS if importlib.util.find_spec(f"{__name__}.{name}") is None)
    return {name: f"there is no benchmarks/operators/{name}.py" for name in names}


def works(device: torch.device, quick: bool) -> Iterator[Work]:
    """Every operator's cases, for a run on `device`; a few of them for a quick one."""
    for name in (name for name in OPERATORS if name not in missing()):
        yield from importlib.import_module(f"{__name__}.{name}").works(device, quick)

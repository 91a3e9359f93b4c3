"""What the operators' calls into the CPU kernels share."""

from __future__ import annotations

from typing import Any

import torch

from hsta_kernels import backends
from hsta_kernels.ops import launch


def refuse(name: str, tensor: torch.Tensor) -> str | None:
    """Why the CPU kernels cannot read `tensor`, or None."""
    return launch.refuse(name, tensor, "cpu")


def run(kernel: str, *arguments: Any) -> None:
    """Calls a kernel of hsta_kernels/_cpu.pyi."""
    getattr(backends.cpu, kernel)(*arguments)

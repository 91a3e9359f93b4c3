"""Where the kernels do all that a patched model asks of them."""

from __future__ import annotations

from torch import Tensor

from hsta_kernels import backends
from hsta_kernels.ops import launch


def has_kernels(tensor: Tensor) -> bool:
    """Whether attention of three tensors, or of tokens patch by patch, has a kernel for tensors like this one.

    A GPU's kernels have neither yet: there, and in float64, the original is faster than our reference.
    """
    return backends.cpu is not None and launch.refuse("", tensor, "cpu") is None

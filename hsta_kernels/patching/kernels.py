"""Where the kernels do all that a patched model asks of them."""

from __future__ import annotations

from torch import Tensor

from hsta_kernels.ops.space_time_attention.autograd import OPERATOR
from hsta_kernels.ops.space_time_attention.grid import Grid

_ANY_GRID = Grid(1, 1, "joint", 0, 1.0)  # Triton's and the CPU's kernels take all others, too, and rotate


def has_kernels(tensor: Tensor, head_dim: int | None = None) -> bool:
    """Whether attention has a kernel for tensors like this one, of heads of `head_dim` elements or else of its last
    dimension. Where it has none, as in float64, the original is faster than our reference.
    """
    rows = (tensor if head_dim is None else tensor[..., :head_dim],)
    return any(OPERATOR.refusal(name, rows, _ANY_GRID) is None for name in ("triton", "cpu"))

"""Where the kernels do all that a patched model asks of them."""

from __future__ import annotations

from torch import Tensor

from hsta_kernels.ops.space_time_attention.autograd import OPERATOR
from hsta_kernels.ops.space_time_attention.grid import Grid

_ANY_GRID = Grid(1, 1, "joint", 0, 1.0)  # Triton's and the CPU's kernels take all others, too


def has_kernels(tensor: Tensor, head_dim: int | None = None, rotary_pairs: str | None = None) -> bool:
    """Whether attention has a kernel for tensors like this one, of heads of `head_dim` elements or else of its last
    dimension, that rotates `rotary_pairs`, if given. Where it has none, as in float64, the original is faster than our
    reference.
    """
    rows = (tensor if head_dim is None else tensor[..., :head_dim],)
    grid = _ANY_GRID._replace(rotary_pairs=rotary_pairs)
    return any(OPERATOR.refusal(name, rows, grid) is None for name in ("triton", "cpu"))

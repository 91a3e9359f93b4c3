"""The tensors of a call besides q, k and v: what every implementation of space-time attention is given."""

from __future__ import annotations

from typing import NamedTuple

import torch

from hsta_kernels.ops.space_time_attention.rotary import Rotary


class Operands(NamedTuple):
    """Each is None where a call has none of it.

    Attributes:
        seed: of dropout's mask, int64 of shape (1,).
        rotary: cos and sin of `grid.rotary_pairs`, float32 of shape (L, D).
        affine: weight and bias of the norm `grid.qk_norm` of q and of k, (2, 2, D), at least float32.
        bias: added to the scores, (H, R, R) with R of `grid.group_rows`.
    """

    seed: torch.Tensor | None = None
    rotary: Rotary | None = None
    affine: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """Seed, cos, sin, affine and bias, as the custom ops take them."""
        cos, sin = self.rotary or (None, None)
        return self.seed, cos, sin, self.affine, self.bias

    @classmethod
    def of(
        cls,
        seed: torch.Tensor | None,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        affine: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> Operands:
        """Of `tensors`."""
        return cls(seed, None if cos is None or sin is None else (cos, sin), affine, bias)


NOTHING = Operands()

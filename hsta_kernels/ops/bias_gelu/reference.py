"""bias_gelu in elementary PyTorch operations, with dropout from a counter-based generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hsta_kernels.ops.philox import philox, threshold


def random_words(rows: int, width: int, seed: torch.Tensor) -> torch.Tensor:
    """Uniform 32-bit numbers as int64, (rows, width): word ``column % 4`` of the block of Philox with the counter
    ``(column // 4, 0, row, row >> 32)``."""
    row = torch.arange(rows, device=seed.device)[:, None]
    block = torch.arange(-(-width // 4), device=seed.device)
    return philox((block, torch.zeros_like(block), row, row >> 32), seed).flatten(1)[:, :width]


def bias_gelu(x: torch.Tensor, bias: torch.Tensor, dropout_rate: float, seed: torch.Tensor | None) -> torch.Tensor:
    """Shapes and meaning as in the public function."""
    out = F.gelu(x + bias)
    if seed is None:
        return out
    rows = x.numel() // max(x.shape[-1], 1)
    kept = random_words(rows, x.shape[-1], seed) >= threshold(dropout_rate)
    return torch.where(kept.view(x.shape), out / (1 - dropout_rate), 0.0)

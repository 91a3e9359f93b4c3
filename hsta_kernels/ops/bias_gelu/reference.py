"""bias_gelu in elementary PyTorch operations, with dropout from a counter-based generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hsta_kernels.ops.philox import philox, threshold

BITS = 16  # of an element's random number: two elements share a word of Philox, whose work is most of dropout's


def random_numbers(rows: int, width: int, seed: torch.Tensor) -> torch.Tensor:
    """Uniform 16-bit numbers as int64, (rows, width).

    The block of Philox with the counter ``(column // 8, 0, row, row >> 32)`` serves eight columns: the low halves of
    its four words the first four, the high halves the others.
    """
    row = torch.arange(rows, device=seed.device)[:, None]
    block = torch.arange(-(-width // 8), device=seed.device)
    words = philox((block, torch.zeros_like(block), row, row >> 32), seed)
    return torch.cat((words & 0xFFFF, words >> 16), dim=-1).flatten(1)[:, :width]


def bias_gelu(x: torch.Tensor, bias: torch.Tensor, dropout_rate: float, seed: torch.Tensor | None) -> torch.Tensor:
    """Shapes and meaning as in the public function."""
    out = F.gelu(x + bias)
    if seed is None:
        return out
    rows = x.numel() // max(x.shape[-1], 1)
    kept = random_numbers(rows, x.shape[-1], seed) >= threshold(dropout_rate, BITS)
    return torch.where(kept.view(x.shape), out / (1 - dropout_rate), 0.0)

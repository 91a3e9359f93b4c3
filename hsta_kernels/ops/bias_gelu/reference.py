"""bias_gelu in elementary PyTorch operations, with dropout from a counter-based generator.

The generator is Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a function of a
key and a counter. Every backend computes the same mask from seed, row and column, so none is saved.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def random_words(rows: int, width: int, seed: torch.Tensor) -> torch.Tensor:
    """Uniform 32-bit numbers as int64, (rows, width): word ``column % 4`` of Philox's block of four.

    The block's counter is ``(column // 4, 0, row, row >> 32)``, its key the low and the high half of `seed`.
    """
    row = torch.arange(rows, device=seed.device)[:, None]
    block = torch.arange(-(-width // 4), device=seed.device)
    words = [block.expand(rows, -1), torch.zeros_like(block).expand(rows, -1), row & _LOW, row >> 32]
    key = [seed & _LOW, (seed >> 32) & _LOW]
    for _ in range(10):
        # Products of 64 bits wrap around into the sign: the bits are right all the same.
        first, second = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        words = [
            ((second >> 32) & _LOW) ^ words[1] ^ key[0],
            second & _LOW,
            ((first >> 32) & _LOW) ^ words[3] ^ key[1],
            first & _LOW,
        ]
        key = [(part + step) & _LOW for part, step in zip(key, _WEYL, strict=True)]
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)[:, :width]


def threshold(dropout_rate: float) -> int:
    """Elements whose random word is below it are dropped."""
    return int(dropout_rate * 2**32)


def bias_gelu(x: torch.Tensor, bias: torch.Tensor, dropout_rate: float, seed: torch.Tensor | None) -> torch.Tensor:
    """Shapes and meaning as in the public function."""
    out = F.gelu(x + bias)
    if seed is None:
        return out
    rows = x.numel() // max(x.shape[-1], 1)
    kept = random_words(rows, x.shape[-1], seed) >= threshold(dropout_rate)
    return torch.where(kept.view(x.shape), out / (1 - dropout_rate), 0.0)

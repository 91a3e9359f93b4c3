"""Random numbers for dropout that every backend computes alike, so that no mask is saved.

The generator is Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a function of a
key and a counter.
"""

from __future__ import annotations

import torch

from hsta_kernels.ops.checks import check_dense, check_number

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox(counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], seed: torch.Tensor) -> torch.Tensor:
    """Blocks of four uniform 32-bit numbers as int64, (..., 4).

    Args:
        counter: four int64 tensors whose shapes broadcast to (...); their low 32 bits count.
        seed: one int64; its low and its high half are the key.
    """
    words = [word & _LOW for word in counter]
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
    return torch.stack(torch.broadcast_tensors(*words), dim=-1)


def threshold(dropout_rate: float, bits: int = 32) -> int:
    """Elements whose random number, of so many bits, is below it are dropped; never all of them."""
    return min(int(dropout_rate * 2**bits + 0.5), 2**bits - 1)


def check_dropout(
    dropout_rate: float, seed: torch.Tensor | None, device: torch.device
) -> tuple[float, torch.Tensor | None]:
    """The rate as a float, and the seed of shape (1,), drawn by PyTorch's generator if there is none; None where
    nothing is dropped."""
    dropout_rate = check_number("dropout_rate", dropout_rate)
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate must be at least 0 and less than 1; got {dropout_rate}")
    if dropout_rate == 0:
        return 0.0, None
    if seed is None:
        return dropout_rate, torch.randint(2**62, (1,), device=device)
    if not isinstance(seed, torch.Tensor) or seed.dtype != torch.int64:
        raise TypeError(f"seed must be an int64 tensor; got {getattr(seed, 'dtype', type(seed).__name__)}")
    check_dense("seed", seed)
    if seed.numel() != 1 or seed.device != device:
        raise ValueError(f"seed must hold one number, on {device}; got {seed.numel()} on {seed.device}")
    return dropout_rate, seed.reshape(1)


def kernel_arguments(dropout_rate: float, seed: torch.Tensor | None) -> tuple[float, int]:
    """The rate and the seed's bits, as csrc/operators.h reads them."""
    return (0.0, 0) if seed is None else (dropout_rate, int(seed) & 0xFFFFFFFFFFFFFFFF)

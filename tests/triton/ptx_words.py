"""Which numbers and tiles the words in a GPU's registers and shared memory are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.triton.ptx_memory import Fault

LANES = np.arange(32)  # of a warp
ROW, COLUMN = LANES // 4, LANES % 4  # of a fragment, where a lane has its first number


def dtype_of(suffix: str) -> np.dtype:
    """Of a PTX type; those without sign or fraction are taken for unsigned integers."""
    if suffix == "pred":
        return np.dtype(bool)
    kind = {"s": "i", "f": "f"}.get(suffix[0], "u")
    return np.dtype(f"{kind}{int(suffix[1:]) // 8}")


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def to_float32(words: np.ndarray, dtype: str) -> np.ndarray:
    """What words of 2 bytes, (..., n), say as numbers of a dtype, (..., n) or, of four bytes each, (..., n / 2)."""
    if dtype == "tf32":  # of whose 32 bits the matrix unit looks at 19
        return (np.ascontiguousarray(words).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    if dtype == "f16":
        return words.view(np.float16).astype(np.float32)
    return (words.astype(np.uint32) << 16).view(np.float32)


def operand_words(descriptor: int, transposed: bool, rows: int) -> np.ndarray:
    """Which words a wgmma reads for `rows` rows of 32 bytes of an operand: (rows, words of a row).

    Of 8 rows of as many bytes as the swizzle has, side by side in memory, 16-byte pieces are exchanged. A transposed
    operand, of 2-byte elements, has its 16 columns where another has rows.
    """
    start, leading, stride = ((descriptor >> bit & 0x3FFF) << 4 for bit in (0, 16, 32))
    swizzle = {1: 128, 2: 64, 3: 32}.get(descriptor >> 62)
    if swizzle is None:
        raise Fault("an operand of the matrix unit that is not swizzled")
    if transposed:
        row, column = np.arange(rows)[:, None] * 2, np.arange(16)[None, :]
        bytes_ = row // swizzle * leading + column // 8 * stride + column % 8 * swizzle + row % swizzle
    else:
        row, column = np.arange(rows)[:, None], np.arange(0, 32, 2)[None, :]
        bytes_ = row // 8 * stride + row % 8 * swizzle + column
    bytes_ = bytes_ + start
    return (bytes_ ^ (bytes_ >> 3 & (swizzle - 16))) // 2


def from_fragment(registers: Sequence[np.ndarray], dtype: str) -> np.ndarray:
    """An operand's tile of 16 rows (two or four registers), or of 8 rows (as B has it), from each warp's registers."""
    words = np.stack(registers, -1).reshape(-1, 32, len(registers))
    warps, _, count = words.shape
    across = 4 if dtype == "tf32" else 8
    tile = np.empty((warps, 16 if count == 4 else 8, 2 * across), np.float32)
    for j in range(count):
        row, column = (ROW + 8 * (j % 2), across * (j // 2)) if count == 4 else (ROW, across * j)
        numbers = to_float32(words[:, :, j : j + 1].copy().view(np.uint16), dtype)
        each = numbers.shape[-1]
        for i in range(each):
            tile[:, row, column + each * COLUMN + i] = numbers[..., i]
    return tile

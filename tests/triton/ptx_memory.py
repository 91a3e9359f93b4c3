"""The memories that tests/triton/ptx_machine.py reads and writes, and what may not be done to shared memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

NOBODY, ON_ITS_WAY = -1, -2
MATRIX_UNIT = np.uint32(1 << 31)  # a reader that no barrier waits for


class Fault(Exception):
    """What a GPU would do wrong, or might."""


class GlobalMemory:
    """The tensors' own memory, at its own addresses, with nothing in between that may be touched."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
        self.bytes = {
            start: torch.empty(0, dtype=torch.uint8).set_(storage).numpy() for start, storage in storages.items()
        }

    def parts(
        self, addresses: np.ndarray, size: int, count: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(which of the addresses, a tensor's elements, the indices of `count` elements from each of them on)."""
        if (addresses % np.uint64(size * count)).any():
            raise Fault(f"an access to {size * count} bytes that are not aligned")
        found = 0
        for start, memory in self.bytes.items():
            offset = addresses.astype(np.int64) - start
            inside = (offset >= 0) & (offset <= memory.size - size * count)
            if inside.any():
                found += np.count_nonzero(inside)
                elements = memory[: memory.size // size * size].view(f"u{size}")
                yield inside, elements, offset[inside, None] // size + np.arange(count)
        if found < addresses.size:
            raise Fault("an access beyond the tensors")

    def read(self, addresses: np.ndarray, size: int, count: int) -> np.ndarray:
        values = np.empty((addresses.size, count), f"u{size}")
        for inside, elements, indices in self.parts(addresses, size, count):
            values[inside] = elements[indices]
        return values

    def write(self, addresses: np.ndarray, values: np.ndarray) -> None:
        for inside, elements, indices in self.parts(addresses, values.dtype.itemsize, values.shape[1]):
            elements[indices] = values[inside]


class SharedMemory:
    """Words of two bytes, with who wrote and who read each of them since the last barrier.

    A warp may read what it wrote itself, or what was there at the last barrier; it may write what no other warp touched
    since. The matrix unit reads what a fence has shown to it, and is done with it when the kernel has waited for it.
    """

    def __init__(self, size: int, warps: int) -> None:
        words = -(-size // 2)
        self.everybody = np.uint32((1 << warps) - 1)
        self.words = np.zeros(words, np.uint16)
        self.known = np.zeros(words, bool)
        self.writer = np.full(words, NOBODY, np.int8)
        self.readers = np.zeros(words, np.uint32)
        self.unfenced = np.zeros(words, bool)

    def indices(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Of the words of `size` bytes from each address on, (addresses, size / 2)."""
        if (addresses % size).any():
            raise Fault(f"an access to {size} bytes of shared memory that are not aligned")
        found = addresses[..., None].astype(np.int64) // 2 + np.arange(size // 2)
        if (found < 0).any() or (found >= self.words.size).any():
            raise Fault("an access beyond the shared memory that the kernel asked for")
        return found

    def read(self, addresses: np.ndarray, size: int, warps: np.ndarray) -> np.ndarray:
        """What lies at each address, (addresses, size / 2), for the warp that asks."""
        at = self.indices(addresses, size)
        if not self.known[at].all():
            raise Fault("shared memory is read where nothing was written")
        writer = self.writer[at]
        if ((writer != NOBODY) & (writer != warps[..., None])).any():
            raise Fault("shared memory is read that was written since the last barrier, or is being written")
        np.bitwise_or.at(self.readers, at, (np.uint32(1) << warps.astype(np.uint32))[..., None])
        return self.words[at]

    def claim(self, at: np.ndarray, warps: np.ndarray, writer: np.ndarray | int) -> None:
        """Words that are about to be written by `writer`, on behalf of `warps`."""
        warps = warps[..., None]
        others = ~(np.uint32(1) << warps.astype(np.uint32))
        if (self.readers[at] & others).any():
            raise Fault("shared memory is written that another warp, or the matrix unit, reads")
        if ((self.writer[at] != NOBODY) & (self.writer[at] != warps)).any():
            raise Fault("two warps write the same shared memory without a barrier in between")
        self.writer[at] = writer

    def put(self, at: np.ndarray, values: np.ndarray, warps: np.ndarray) -> None:
        self.words[at], self.known[at], self.writer[at] = values, True, warps[..., None]

    def write(self, addresses: np.ndarray, values: np.ndarray, warps: np.ndarray) -> None:
        """Values of 2 bytes, (addresses, size / 2)."""
        at = self.indices(addresses, 2 * values.shape[-1])
        self.claim(at, warps, warps[..., None])
        self.put(at, values, warps)
        self.unfenced[at] = True

    def operand(self, at: np.ndarray) -> np.ndarray:
        """Words that the matrix unit reads for all warps of a group."""
        if at.max() >= self.words.size or not self.known[at].all():
            raise Fault("the matrix unit reads shared memory where nothing was written")
        if (self.writer[at] != NOBODY).any():
            raise Fault("the matrix unit reads shared memory that was written since the last barrier")
        if self.unfenced[at].any():
            raise Fault("the matrix unit reads shared memory that no fence.proxy.async has shown to it")
        self.readers[at] |= MATRIX_UNIT
        return self.words[at]

    def barrier(self) -> None:
        self.writer[self.writer != ON_ITS_WAY] = NOBODY
        self.readers &= MATRIX_UNIT

    def fence(self) -> None:
        self.unfenced[:] = False

    def done(self, at: np.ndarray) -> None:
        """The kernel has waited for the matrix unit, each warp for itself."""
        self.readers[at] = self.everybody

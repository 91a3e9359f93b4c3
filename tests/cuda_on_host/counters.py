"""What the emulator counts: bytes moved, launches, the shared memory they ask for; and how much of that there is."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from hsta_kernels import backends

# Bytes of shared memory that a block may have. Of all GPUs from sm_80 on, sm_86, sm_89 and sm_120 have least.
SHARED_MEMORY = {"sm_86": 99 << 10, "sm_80": 163 << 10, "sm_90": 227 << 10}

_library = ctypes.CDLL(backends.cuda.__file__)
_library.take_traffic.restype = _library.take_shared_memory.restype = ctypes.c_int64


def take_traffic() -> int:
    """Bytes of global memory moved since the last call."""
    share_nothing()
    return _library.take_traffic()


def share(*tensors: torch.Tensor) -> int:
    """From now on reading these is free. Returns their bytes."""
    for tensor in tensors:
        _library.share(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.nbytes))
    return sum(tensor.nbytes for tensor in tensors)


def share_nothing() -> None:
    _library.share(None, ctypes.c_int64(0))


def take_shared_memory() -> tuple[int, int]:
    """Bytes that a block of the first kernel since the last call took, and how many kernels were launched."""
    launches = ctypes.c_int64()
    return _library.take_shared_memory(ctypes.byref(launches)), launches.value


@contextmanager
def shared_memory_limit(limit: int) -> Iterator[None]:
    """Blocks may have at most `limit` bytes of shared memory."""
    _library.limit_shared_memory(ctypes.c_int64(limit))
    try:
        yield
    finally:
        _library.limit_shared_memory(ctypes.c_int64(SHARED_MEMORY["sm_90"]))


def shared_memory_of(gpu: str) -> AbstractContextManager[None]:
    return shared_memory_limit(SHARED_MEMORY[gpu])

"""What the emulator counts: bytes moved, launches, the shared memory they ask for."""

from __future__ import annotations

import ctypes

import torch

from hsta_kernels import backends

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

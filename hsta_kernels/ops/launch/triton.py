"""What the operators' calls into their Triton kernels share. Imports no Triton: that is left to the first launch."""

from __future__ import annotations

import copy
import ctypes
import functools
import importlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hsta_kernels import backends
from hsta_kernels.ops import launch
from hsta_kernels.ops.launch.triton_table import SINCE, TABLE
from hsta_kernels.ops.philox import threshold


def refuse(name: str, tensor: torch.Tensor, kernel: str) -> str | None:
    """Why the Triton kernels cannot read `tensor`, or None; `kernel` is the operator's most demanding one."""
    reason = launch.refuse(name, tensor, "cpu" if backends.triton_interpreted else "cuda")
    if reason is not None:
        return reason
    if _capability(tensor.device) < (8, 0):
        return f"{name} is on a GPU older than sm_80"
    if not configured(kernel, tensor, tensor.shape[-1]):
        return f"{name} has rows of {tensor.shape[-1]} {tensor.dtype}; the kernels do not go so wide"
    return None


def precision(dtype: torch.dtype) -> str:
    """How float32 products are computed, as torch's own setting says; other dtypes have one way.

    AMD's GPUs compute them as they are: TF32, which a gfx942 has and a gfx950 has not, PyTorch leaves alone there, too.
    """
    matmul = torch.backends.cuda.matmul
    if dtype != torch.float32 or torch.version.hip is not None:
        return "ieee"
    if hasattr(matmul, "fp32_precision"):  # PyTorch 2.9; reading the older name after the newer one was set raises
        return "tf32" if matmul.fp32_precision == "tf32" else "ieee"
    return "tf32" if matmul.allow_tf32 else "ieee"


def _constant(function: Any) -> Any:
    """torch.compiler.assume_constant_result, which imports the compiler and, with it, Triton."""
    function._dynamo_marked_constant = True
    return function


@functools.cache
@_constant  # the compiler looks through the cache, and may not import
def version() -> tuple[int, int]:
    """Triton's, major and minor."""
    major, minor = importlib.import_module("triton").__version__.split(".")[:2]
    return int(major), int(minor)


def in_units(strides: Sequence[int]) -> tuple[list[int], int]:
    """Strides in units of 8 elements where all are multiples of it, else of one, and the unit.

    A kernel that multiplies by a constant unit is known to the compiler to load 16 aligned bytes at a time.
    """
    unit = 8 if math.gcd(*strides) % 8 == 0 else 1
    return [stride // unit for stride in strides], unit


def in_two_parts(number: float) -> tuple[float, float]:
    """`number` in float32, rounded towards zero, and what that leaves of it, or next to nothing, but not zero.

    Both have the sign of `number`: for an infinite x, x * high + x * low is then infinite too, and not NaN.
    """
    high = ctypes.c_float(number).value
    if abs(high) > abs(number):
        bits = ctypes.c_int32.from_buffer(ctypes.c_float(high)).value
        high = ctypes.c_float.from_buffer(ctypes.c_int32(bits - 1)).value
    return high, number - high or high * 2**-40


def dropout_arguments(
    dropout_rate: float, seed: torch.Tensor | None
) -> tuple[torch.Tensor | None, int | None, float | None]:
    """The seed, the words below which a probability is dropped, as 32 signed bits, and the factor of the others.

    Without dropout these are None, and the kernels compiled without them.
    """
    if seed is None:
        return None, None, None
    return seed, ctypes.c_int32(threshold(dropout_rate)).value, 1 / (1 - dropout_rate)


@functools.cache
def power_of_2(number: int) -> int:
    """The smallest power of 2 that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of an NVIDIA GPU; for other vendors' and for the interpreter, that of the rows of 80."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 8, 0
    return torch.cuda.get_device_capability(device)


def architecture(device: torch.device) -> int:
    """The GPU generation whose configurations fit `device`: 80, 89, 90, 100 or 120."""
    return generation(*_capability(device))


@functools.cache
def generation(major: int, minor: int) -> int:
    """That of a compute capability. Those of consumer GPUs have less shared memory than the data centre's.

    Other vendors' GPUs and the interpreter take the rows of 80, which are made for as little.
    """
    if (major, minor) in ((9, 0), (10, 0), (10, 3), (12, 0), (12, 1)):
        return 10 * major
    return 89 if major == 8 and minor > 0 else 80


Chain = Iterator[dict[str, bool]]


def new_chain(device: torch.device, alone: bool = False) -> Chain:
    """Options for the kernels that one call launches one right after the other, one launch's at a time; or of a kernel
    `alone`.

    From sm_90 on, with Triton 3.6 and later, the next one's programs are placed while the last of the one before still
    run (programmatic dependent launch). Each kernel begins with `enter_chain` (triton_chain.py), which says why that is
    right. The first one is launched as usual, for what is before it on the stream is not ours. So is what comes after
    something of PyTorch's, a chain of its own: that may be a copy or a memset, and in a CUDA graph, where the launches
    become edges, only kernels let others come before they are done.
    """
    if alone or version() < (3, 6) or architecture(device) < 90:
        return itertools.repeat({"CHAINED": False})
    return itertools.chain([{"CHAINED": True}], itertools.repeat({"CHAINED": True, "launch_pdl": True}))


def multiprocessors(device: torch.device) -> int:
    """How many the GPU has; without a GPU, as many as an A100, a B200 or, of other generations, an H200."""
    if device.type == "cuda":
        return _multiprocessors(device)
    return {80: 108, 100: 148}.get(architecture(device), 132)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def configured(kernel: str, tensor: torch.Tensor, width: int, length: int = 1) -> bool:
    """Whether the table has a configuration of `kernel`, for rows of `width` elements and sequences of `length`."""
    return _row(kernel, architecture(tensor.device), tensor.element_size(), width, length) is not None


def configuration(kernel: str, tensor: torch.Tensor, width: int, length: int = 1) -> dict[str, Any]:
    """The launch options of `kernel`: tile sizes, warps, stages.

    Products and sums are not contracted: in the softmax that would round a score differently where it is the maximum
    and where it is compared with it. Triton 3.2 fails to pipeline some of the loops and is asked for none.
    """
    config = _row(kernel, architecture(tensor.device), tensor.element_size(), width, length)
    if config is None:
        raise LookupError(f"{kernel} has no configuration for rows of {width} {tensor.dtype}")
    return config | {"enable_fp_fusion": False} | ({"num_stages": 1} if version() < (3, 3) else {})


def registers_first() -> dict[str, int]:
    """Launch options of a kernel of which ptxas spills a few registers for the sake of occupancy, before Triton 3.7."""
    return {"maxnreg": 255} if version() < (3, 7) and torch.version.hip is None else {}


@functools.cache
def _row(kernel: str, arch: int, element_size: int, width: int, length: int) -> dict[str, int] | None:
    rows = table(version())[kernel]
    fits = [key for key in rows if key[:2] == (arch, element_size) and key[2] >= width and key[3] >= length]
    return rows[min(fits)] if fits else None


@functools.cache
@_constant
def table(installed: tuple[int, int]) -> dict[str, dict[tuple[int, int, int, int], dict[str, int]]]:
    """The configurations for a version of Triton: what one compiler holds in registers, another spills."""
    found = copy.deepcopy(TABLE)
    for release in sorted(SINCE):
        if release <= installed:
            for kernel, rows in SINCE[release].items():
                found[kernel] = {key: options for key, options in (found[kernel] | rows).items() if options}
    return found

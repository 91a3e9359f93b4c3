"""Argument checks shared by the operators: an error names the argument, what came and what was expected."""

from __future__ import annotations

import numbers

import torch

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensor(name: str, tensor: torch.Tensor, shape: str, like: tuple[str, torch.Tensor] | None = None) -> None:
    """Checks type, layout, rank, dtype, and device.

    Args:
        name: the argument's name.
        tensor: its value.
        shape: the expected shape in words, one letter or number a dimension, such as ``"(B, N, C)"``.
        like: name and value of another argument whose dtype and device must be the same.

    Raises:
        TypeError: not a dense tensor, a dtype that is not floating point, or another dtype than `like`.
        ValueError: another rank than expected, or another device than `like`.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor of shape {shape}; got {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.is_nested:
        check_dense(name, tensor)
    if tensor.dim() != shape.count(",") + (0 if shape.endswith(",)") else 1):
        raise ValueError(f"{name} must have shape {shape}; got {tuple(tensor.shape)}")
    if like is None or tensor.dtype != like[1].dtype:
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{name} must be float32, bfloat16, float16 or float64; got {tensor.dtype}")
        if like is not None:
            raise TypeError(f"{name} must have the dtype of {like[0]}, {like[1].dtype}; got {tensor.dtype}")
    if like is not None and tensor.device != like[1].device:
        raise ValueError(f"{name} must be on the device of {like[0]}, {like[1].device}; got {tensor.device}")


def check_dense(name: str, tensor: torch.Tensor) -> None:
    """Raises TypeError unless the elements of `tensor` lie at its strides."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "a nested tensor" if tensor.is_nested else f"one of layout {tensor.layout}"
        raise TypeError(f"{name} must be a dense tensor, of layout torch.strided; got {kind}")


def check_width(name: str, tensor: torch.Tensor, letters: str) -> None:
    """Raises ValueError if the last dimension of `tensor`, of the shape described by `letters`, is empty."""
    if tensor.shape[-1] == 0:
        raise ValueError(f"{name} must have shape {letters} with C of at least 1; got {tuple(tensor.shape)}")


def check_integer(name: str, value: int, expected: str = "an integer") -> int:
    """`value` as a Python integer, which NumPy's become; TypeError for anything else, booleans too."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be {expected}; got {value!r}")
    return int(value)


def check_number(name: str, value: float) -> float:
    """`value` as a Python float, which integers and NumPy's numbers become; TypeError for anything else."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name} must be a number; got {value!r}")
    return float(value)


def autocast_enabled(tensor: torch.Tensor) -> bool:
    """Whether autocast is on for the device of `tensor`; meta tensors know of none."""
    device = tensor.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def check_shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...], letters: str) -> None:
    """Raises ValueError unless `tensor` has the `expected` shape, described by `letters`."""
    if tensor.shape != expected:
        raise ValueError(f"{name} must have shape {letters} = {expected}; got {tuple(tensor.shape)}")


def rows_contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` itself when its last dimension is contiguous, which kernels read in place; else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()

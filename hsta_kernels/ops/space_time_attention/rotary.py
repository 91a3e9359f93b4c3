"""Rotary position embedding of queries and keys: what its tables have to be, and what is done with them."""

from __future__ import annotations

import torch

from hsta_kernels.ops.checks import check_shape, check_tensor

Rotary = tuple[torch.Tensor, torch.Tensor]  # cos and sin, each (L, D)

PAIRS = ("interleaved", "half")


def check_rotary(rotary: Rotary | None, tokens: torch.Tensor) -> Rotary | None:
    """The tables as a tuple; `tokens` is one of the call's tensors, (B, L, ..., D)."""
    if rotary is None:
        return None
    if not isinstance(rotary, (tuple, list)) or len(rotary) != 2:
        what = f"{len(rotary)} tensors" if isinstance(rotary, (tuple, list)) else type(rotary).__name__
        raise TypeError(f"rotary must be two tensors, cos and sin, each (L, D); got {what}")
    length, head_dim = tokens.shape[1], tokens.shape[-1]
    if head_dim % 2:
        raise ValueError(f"rotary takes pairs of channels: qkv must have an even head_dim D; got {head_dim}")
    for name, table in zip(("cos of rotary", "sin of rotary"), rotary, strict=True):
        check_tensor(name, table, "(L, D)")
        check_shape(name, table, (length, head_dim), "(L, D) of qkv")
        if table.dtype != torch.float32:
            raise TypeError(f"{name} must be float32; got {table.dtype}")
        if table.device != tokens.device:
            raise ValueError(f"{name} must be on the device of qkv, {tokens.device}; got {table.device}")
        if table.requires_grad:
            raise ValueError(f"{name} must not require a gradient, which it never gets; pass {name[:3]}.detach()")
    return rotary[0], rotary[1]


def rotated(x: torch.Tensor, rotary: Rotary, pairs: str) -> torch.Tensor:
    """x·cos + rotate(x)·sin of (B, L, H, D), at least in the tables' precision, then rounded to the dtype of `x`."""
    cos, sin = (table[:, None].to(torch.promote_types(x.dtype, table.dtype)) for table in rotary)
    if pairs == "interleaved":
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        partners = torch.stack([-second, first], dim=-1).flatten(-2)
    else:
        first, second = x.chunk(2, dim=-1)
        partners = torch.cat([-second, first], dim=-1)
    return (x * cos + partners * sin).to(x.dtype)

"""Other ways to compute space-time attention from the packed (B, L, 3, H, D) projection.

Libraries attend over (sequences, H, length, D), so every one of them first gathers groups: prefix keys and values are
put before each group's, and the prefix queries are a second, separate attention over all tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from hsta_kernels.ops.space_time_attention import reference

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # (S, H, length, D) each


def grouped(attend: Attend, qkv: torch.Tensor, grid: tuple[int, int], axis: str, prefix: int) -> torch.Tensor:
    """Space-time attention by `attend` on groups laid out as libraries want them."""
    batch, _, _, heads, dim = qkv.shape
    if axis == "joint":
        return attend(*qkv.permute(2, 0, 3, 1, 4).unbind(0)).transpose(1, 2)
    frames, patches = grid
    grouping = qkv[:, prefix:].unflatten(1, grid)
    members = grouping.transpose(1, 2) if axis == "time" else grouping  # (B, groups, members, 3, H, D)
    groups = members.shape[1]
    q, k, v = members.permute(3, 0, 1, 4, 2, 5).flatten(1, 2).unbind(0)  # (B*groups, H, members, D)
    if prefix:
        shared = qkv[:, None, :prefix].expand(-1, groups, -1, -1, -1, -1).permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
        k, v = torch.cat([shared[1], k], dim=2), torch.cat([shared[2], v], dim=2)
    out = attend(q, k, v).unflatten(0, (batch, groups)).permute(0, 1, 3, 2, 4)  # (B, groups, members, H, D)
    out = (out.transpose(1, 2) if axis == "time" else out).reshape(batch, frames * patches, heads, dim)
    if prefix:
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = torch.cat([attend(q[:, :, :prefix], k, v).transpose(1, 2), out], dim=1)
    return out


def broadcast_attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention without matrix products: compiled, the strongest form for short sequences."""
    if q.shape[2] * k.shape[2] > 64 * 64:
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q[:, :, :, None] * k[:, :, None]).sum(-1) * q.shape[-1] ** -0.5
    return (scores.softmax(-1)[..., None] * v[:, :, None]).sum(3)


def _flash_attn_attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from flash_attn import flash_attn_func

    return flash_attn_func(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


def _xformers_attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


def contenders(
    grid: tuple[int, int], axis: str, prefix: int, qkv: torch.Tensor
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Name -> function of qkv, all that run on its device and dtype."""
    scale = qkv.shape[-1] ** -0.5

    def eager(x: torch.Tensor) -> torch.Tensor:
        return reference.space_time_attention(x, *grid, axis, prefix, scale)

    def sdpa(x: torch.Tensor) -> torch.Tensor:
        return grouped(F.scaled_dot_product_attention, x, grid, axis, prefix)

    def forced(backend: SDPBackend) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(x: torch.Tensor) -> torch.Tensor:
            with sdpa_kernel(backend):
                return sdpa(x)

        return run

    found: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "eager": eager,
        "compiled eager": torch.compile(eager, dynamic=False),
        "compiled SDPA": torch.compile(sdpa, dynamic=False),
        "SDPA math": forced(SDPBackend.MATH),
        "SDPA flash": forced(SDPBackend.FLASH_ATTENTION),
    }
    if axis == "time":
        found["compiled broadcast"] = torch.compile(
            partial(grouped, broadcast_attend, grid=grid, axis=axis, prefix=prefix), dynamic=False
        )
    if qkv.device.type == "cuda":
        found["SDPA mem-efficient"] = forced(SDPBackend.EFFICIENT_ATTENTION)
        found["SDPA cuDNN"] = forced(SDPBackend.CUDNN_ATTENTION)
        for name, attend in (("flash-attn", _flash_attn_attend), ("xformers", _xformers_attend)):
            found[name] = partial(grouped, attend, grid=grid, axis=axis, prefix=prefix)
    return {name: function for name, function in found.items() if _runs(name, function, qkv)}


def _runs(name: str, function: Callable[[torch.Tensor], torch.Tensor], qkv: torch.Tensor) -> bool:
    """Whether this installation, dtype and shape have the contender at all; compiled forms compile here."""
    try:
        function(qkv)
    except (ImportError, RuntimeError) as error:
        print(f"\n  no contender {name!r}: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
        return False
    return True

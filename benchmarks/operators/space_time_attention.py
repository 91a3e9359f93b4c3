"""Space-time attention, and other ways to compute it from the packed (B, L, 3, H, D) projection.

Libraries attend over (sequences, H, length, D), so every one of them first gathers groups: prefix keys and values are
put before each group's, and the prefix queries are a second, separate attention over all tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import hsta_kernels
from benchmarks.case import HEAD_DIM, HEADS, PATCHES, WIDTH, Case, Work, dtypes, operator_case, sdpa_takes
from hsta_kernels.ops.space_time_attention import reference
from hsta_kernels.ops.space_time_attention.grid import Grid

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
    """Name -> function of qkv; not all of them run in every installation, dtype and shape."""
    scale = qkv.shape[-1] ** -0.5

    def eager(x: torch.Tensor) -> torch.Tensor:
        return reference.space_time_attention((x,), Grid(*grid, axis, prefix, scale))

    def sdpa(x: torch.Tensor) -> torch.Tensor:
        return grouped(F.scaled_dot_product_attention, x, grid, axis, prefix)

    def forced(backend: SDPBackend) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(x: torch.Tensor) -> torch.Tensor:
            with sdpa_kernel(backend):
                return sdpa(x)

        return run

    # In this order they get ready while there is time: what needs no compiling first, then the strongest.
    on_gpu = qkv.device.type == "cuda"
    found: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        **({"SDPA": sdpa} if on_gpu else {}),  # which chooses among the following
        "eager": eager,
        "SDPA math": forced(SDPBackend.MATH),
        "SDPA flash": forced(SDPBackend.FLASH_ATTENTION),
    }
    if on_gpu:
        found["SDPA mem-efficient"] = forced(SDPBackend.EFFICIENT_ATTENTION)
        found["SDPA cuDNN"] = forced(SDPBackend.CUDNN_ATTENTION)
        for name, attend in (("flash-attn", _flash_attn_attend), ("xformers", _xformers_attend)):
            found[name] = partial(grouped, attend, grid=grid, axis=axis, prefix=prefix)
    if axis == "time":
        found["compiled broadcast"] = torch.compile(
            partial(grouped, broadcast_attend, grid=grid, axis=axis, prefix=prefix), dynamic=False
        )
    found["compiled eager"] = torch.compile(eager, dynamic=False)
    found["compiled SDPA"] = torch.compile(sdpa, dynamic=False)
    return found


def case(
    axis: str, frames: int, prefix: int, batch: int, backward: bool, dtype: torch.dtype, device: torch.device
) -> Case:
    grid = (frames, PATCHES)
    tokens = prefix + frames * PATCHES
    qkv = torch.randn(batch, tokens, 3, HEADS, HEAD_DIM, device=device).to(dtype)

    def ours(x: torch.Tensor) -> torch.Tensor:
        return hsta_kernels.ops.space_time_attention(x, grid, axis, prefix)

    leaf = qkv.detach().requires_grad_(backward)
    takes = sdpa_takes(lambda attend: grouped(attend, leaf, grid, axis, prefix))
    # Floors of the operators' specification: a token is read as q, k, v and written once; back, 7 such rows move.
    length = {"time": frames, "space": PATCHES, "joint": frames * PATCHES}[axis] + prefix
    return operator_case(
        "space_time_attention",
        f"{axis} {'backward' if backward else 'forward'} T={frames} N={PATCHES} P={prefix} B={batch}",
        ours,
        contenders(grid, axis, prefix, qkv),
        [qkv],
        [qkv[:, :, 0]],
        backward,
        {"SDPA takes": takes},
        bytes=(7 if backward else 4) * batch * tokens * WIDTH * qkv.element_size(),
        flops=(10 if backward else 4) * batch * tokens * length * WIDTH,
    )


def works(device: torch.device, quick: bool) -> Iterator[Work]:
    batch = 4 if device.type == "cpu" else 32
    shapes = [("time", 3, batch), ("space", 3, 2 if quick else batch)]
    if not quick:
        shapes += [("time", 8, batch), ("time", 16, batch), ("joint", 3, 1), ("joint", 8, 1)]
    for (axis, frames, size), backward, (short, dtype) in product(shapes, (False, True), dtypes(quick).items()):
        name = f"space_time_attention-{axis}-T{frames}-P1-{'bwd' if backward else 'fwd'}-{short}"
        yield Work(name, partial(case, axis, frames, 1, size, backward, dtype, device))

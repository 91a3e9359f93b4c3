"""Factorized space-time attention: softmax attention over time, over space, or over both."""

from __future__ import annotations

import torch

from hsta_kernels.ops.checks import autocast_enabled, check_integer, check_number, check_tensor
from hsta_kernels.ops.space_time_attention import autograd, reference

AXES = ("time", "space", "joint")


def space_time_attention(
    qkv: torch.Tensor,
    grid_size: tuple[int, int],
    axis: str,
    num_prefix_tokens: int = 1,
    scale: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Multi-head attention of the tokens of a video, each patch looking along one axis of the (time, space) grid.

    The tokens are `num_prefix_tokens` prefix (CLS) tokens followed by T·N patches, time-major: patch n of frame t is
    token ``num_prefix_tokens + t*N + n``. A patch attends to the prefix tokens and

    - ``axis="time"``: to the patches at its own place in all frames,
    - ``axis="space"``: to the patches of its own frame,
    - ``axis="joint"``: to all patches.

    Prefix tokens attend to everything. This is the divided attention of Frozen in Time (arXiv 2104.00650) and of
    Motionformer's baseline (arXiv 2106.05392). TimeSformer (arXiv 2102.05095) differs: it leaves CLS out of attention
    over time, and over space it gives each frame a copy of CLS and averages the copies. With no prefix tokens this is
    plain factorized attention as ViViT (arXiv 2103.15691) and video diffusion models use it.

    NaN and infinity get into the results that depend on them, and into no others; but on a GPU, over time, they make
    NaN of results of neighbouring places too. In Triton, NaN may stand for infinity where there are prefix tokens.

    Args:
        qkv: packed projections, shape (B, L, 3, H, D) with L = num_prefix_tokens + T·N, as ``nn.Linear`` leaves them
            after a view; float32, bfloat16, float16 or float64. Any strides with a contiguous last dimension are read
            in place. Under autocast, float32 input is cast to the autocast dtype, as PyTorch's own attention does.
        grid_size: (T, N), temporal positions and patches a frame.
        axis: ``"time"``, ``"space"`` or ``"joint"``.
        num_prefix_tokens: P, number of prefix tokens, 0 or more.
        scale: factor on the scores before softmax; ``1 / sqrt(D)`` when None.
        backend: ``"cuda"``, ``"triton"``, ``"cpu"``, ``"reference"`` or ``"auto"`` for this call; by default what
            ``set_backend`` chose.

    Returns:
        Tensor of shape (B, L, H, D), contiguous, dtype of `qkv`. Differentiable any number of times in `qkv`.

    Raises:
        TypeError: `qkv` is not a dense floating-point tensor, `grid_size` and `num_prefix_tokens` are not integers, or
            `scale` is not a number.
        ValueError: `qkv` has another shape or no elements in a row, the grid does not give L, or `axis` is none of the
            three.
        BackendError: a backend was requested by name and cannot run this call.
    """
    check_tensor("qkv", qkv, "(B, L, 3, H, D)")
    num_frames, num_patches = _check_grid(grid_size)
    if axis not in AXES:
        raise ValueError(f"axis must be 'time', 'space' or 'joint'; got {axis!r}")
    num_prefix_tokens = check_integer("num_prefix_tokens", num_prefix_tokens)
    if num_prefix_tokens < 0:
        raise ValueError(f"num_prefix_tokens must be 0 or more; got {num_prefix_tokens}")
    _, length, parts, heads, head_dim = qkv.shape
    if parts != 3:
        raise ValueError(f"qkv must have shape (B, L, 3, H, D); got {tuple(qkv.shape)}")
    if length != num_prefix_tokens + num_frames * num_patches:
        raise ValueError(
            f"qkv must have L = num_prefix_tokens + T*N = {num_prefix_tokens} + {num_frames}*{num_patches} = "
            f"{num_prefix_tokens + num_frames * num_patches} tokens for grid_size {tuple(grid_size)}; got {length}"
        )
    if heads == 0 or head_dim == 0:
        raise ValueError(f"qkv must have H heads and a head_dim D of at least 1; got {tuple(qkv.shape)}")
    if qkv.dtype == torch.float32 and autocast_enabled(qkv):
        qkv = qkv.to(torch.get_autocast_dtype(qkv.device.type))

    scale = float(head_dim) ** -0.5 if scale is None else check_number("scale", scale)
    arguments = (qkv, num_frames, num_patches, axis, num_prefix_tokens, scale)
    chosen = autograd.OPERATOR.choose(qkv, *arguments[1:-1], tensors=(qkv,), requested=backend)
    if chosen == "reference":
        return reference.space_time_attention(*arguments)
    return autograd.SpaceTimeAttention.apply(*arguments, chosen)


def _check_grid(grid_size: tuple[int, int]) -> tuple[int, int]:
    try:
        num_frames, num_patches = grid_size
    except (TypeError, ValueError):
        raise ValueError(f"grid_size must be two integers (T, N); got {grid_size!r}") from None
    num_frames, num_patches = (
        check_integer("grid_size", size, "two integers (T, N)") for size in (num_frames, num_patches)
    )
    if num_frames < 1 or num_patches < 1:
        raise ValueError(f"grid_size must be two positive integers (T, N); got {tuple(grid_size)}")
    return num_frames, num_patches

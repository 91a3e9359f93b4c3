"""Factorized space-time attention: softmax attention over time, over space, or over both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from hsta_kernels.ops.checks import autocast_enabled, check_integer, check_number, check_shape, check_tensor
from hsta_kernels.ops.philox import check_dropout
from hsta_kernels.ops.space_time_attention import autograd, padded, reference
from hsta_kernels.ops.space_time_attention.bias import check_bias
from hsta_kernels.ops.space_time_attention.grid import AXES, PREFIXES, TOKEN_ORDERS, Grid
from hsta_kernels.ops.space_time_attention.operands import Operands
from hsta_kernels.ops.space_time_attention.qk_norm import QKNorm, check_qk_norm
from hsta_kernels.ops.space_time_attention.rotary import PAIRS, check_rotary


def space_time_attention(
    qkv: torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    grid_size: tuple[int, int],
    axis: str,
    num_prefix_tokens: int = 1,
    scale: float | None = None,
    backend: str | None = None,
    *,
    prefix: str = "all",
    token_order: str = "time_major",
    dropout_rate: float = 0.0,
    seed: torch.Tensor | None = None,
    valid_frames: Sequence[int] | torch.Tensor | None = None,
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
    rotary_pairs: str = "interleaved",
    qk_norm: QKNorm | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multi-head attention of the tokens of a video, each patch looking along one axis of the (time, space) grid.

    The tokens are `num_prefix_tokens` prefix (CLS, register) tokens followed by T·N patches: patch n of frame t is
    token ``num_prefix_tokens + t*N + n``, or with ``token_order="patch_major"`` ``num_prefix_tokens + n*T + t``. A
    patch attends to the prefix tokens and

    - ``axis="time"``: to the patches at its own place in all frames,
    - ``axis="space"``: to the patches of its own frame,
    - ``axis="joint"``: to all patches.

    What prefix tokens do is said by `prefix`:

    - ``"all"``: they attend to everything. This is the divided attention of Frozen in Time (arXiv 2104.00650) and of
      Motionformer's baseline (arXiv 2106.05392).
    - ``"none"``: they take no part. No patch sees them, and each sees itself alone, so that its output is its value.
      TimeSformer (arXiv 2102.05095) over time.
    - ``"frame_mean"``: in each frame they attend to the prefix and the frame's patches, and the outputs of all frames
      are averaged. TimeSformer over space.

    With no prefix tokens this is plain factorized attention as ViViT (arXiv 2103.15691) and video diffusion models use
    it.

    NaN and infinity get into the results that depend on them, and into no others; but on a GPU, over time, they make
    NaN of results of neighbouring places too. In Triton, NaN may stand for infinity where there are prefix tokens.

    Args:
        qkv: packed projections, shape (B, L, 3, H, D) with L = num_prefix_tokens + T·N, as ``nn.Linear`` leaves them
            after a view, or a tuple of q, k and v, each (B, L, H, D); float32, bfloat16, float16 or float64. Any
            strides with a contiguous last dimension are read in place, so ``x.transpose(1, 2)`` of the (B, H, L, D)
            that others take costs no copy. k and v may have H/R heads, each for R heads of q that follow each other
            (grouped-query attention, arXiv 2305.13245): R calls, no copies of keys. Under autocast, float32 input is
            cast to the autocast dtype, as PyTorch's own attention does.
        grid_size: (T, N), temporal positions and patches a frame.
        axis: ``"time"``, ``"space"`` or ``"joint"``.
        num_prefix_tokens: P, number of prefix tokens, 0 or more.
        scale: factor on the scores before softmax; ``1 / sqrt(D)`` when None.
        backend: ``"cuda"``, ``"triton"``, ``"cpu"``, ``"reference"`` or ``"auto"`` for this call; by default what
            ``set_backend`` chose.
        prefix: ``"all"``, ``"none"``, or with ``axis="space"`` ``"frame_mean"``.
        token_order: ``"time_major"`` or ``"patch_major"``.
        dropout_rate: probability of an attention probability to become zero, in [0, 1); the others are divided by
            1 - dropout_rate.
        seed: of dropout's mask, one int64 on the device of `qkv`, which gives the same mask on every backend. Without
            one, PyTorch's generator draws it when `dropout_rate` is not 0.
        valid_frames: of each sample, how many of its T frames are a clip's, from 1 to T; a sequence of B integers or a
            tensor of them, which on a GPU is waited for. What follows is padding: it is not read, its outputs and
            gradients are zero, and it takes no time. Or a bool tensor (B, T) of the frames that are: a key mask by
            frame, for which copies of the valid frames are read where these are not the first ones. None where all
            frames are valid.
        rotary: rotary position embedding of q and k (RoFormer, arXiv 2104.09864): cos and sin, each (L, D) float32 on
            the device of `qkv`, a row for each token in its order, prefix tokens too, the same for all samples and
            heads. Where q and k are read they become ``x*cos + rotate(x)*sin``, rounded once, and v stays. cos of 1
            and sin of 0 leave a row alone. The tables are read as they are, whatever the angles of a pair's two
            channels, and have no gradients.
        rotary_pairs: what channels are a pair, of which ``rotate`` makes (-second, first): ``"interleaved"``, 2i and
            2i + 1 (RoFormer, V-JEPA 2), or ``"half"``, i and i + D/2 (GPT-NeoX, most of Hugging Face).
        qk_norm: LayerNorm or RMSNorm of q and k over D, where they are read, before they are rotated: kind, weights,
            biases and eps of a `QKNorm`. Statistics and norm are float32 (float64 where `qkv` is), rounded once, with
            the rotation.
        bias: added to ``scale * q·k`` before softmax, (H, R, R) of queries and keys, the same for all samples and
            groups of the axis (relative position bias: T5, arXiv 1910.10683; Video Swin, arXiv 2106.13230); float32 or
            the dtype of `qkv`, computed with in float32, on the device of `qkv`, with a gradient. R is the number of
            rows of a group: the prefix tokens, except with ``prefix="none"``, then its patches in their order, so
            P + T over time, P + N over space and L jointly. A prefix query that attends to everything has its row of
            the bias in each group. A key whose bias is -inf has weight and gradient zero; a query of only such keys
            has NaN, as torch.softmax gives. Numbers below float32's lowest by log(2) are -inf. With `valid_frames` the
            rows of valid frames count.

    Returns:
        Tensor of shape (B, L, H, D), contiguous, dtype of `qkv`. Differentiable any number of times in `qkv`, `bias`
        and the weights and biases of `qk_norm`; the gradient is packed where `qkv` is.

    Raises:
        TypeError: `qkv` is not a dense floating-point tensor or three of one dtype, `grid_size` and
            `num_prefix_tokens` are not integers, nor is `valid_frames` of integers or bools, `scale` or `dropout_rate`
            is not a number, `seed` is not int64, `rotary` is not two float32 tensors, `bias` is neither float32 nor of
            the dtype of `qkv`, `qk_norm` is not a `QKNorm`, or of it a weight or bias is not a dense floating-point
            tensor or `eps` not a number.
        ValueError: `qkv` has another shape or no elements in a row, the grid does not give L, `axis`, `prefix`,
            `token_order` or `rotary_pairs` is not one of those above, `dropout_rate` is outside [0, 1), `seed` is not
            one number beside `qkv`, `valid_frames` are not B numbers from 1 to T or (B, T) with a valid frame in each
            sample, of `rotary` the tables are not
            (L, D) beside `qkv`, D is odd, or a table requires a gradient, of `qk_norm` `kind` is another, `eps` is
            negative, a weight or bias is not (D,) beside `qkv`, or RMSNorm has a bias, or `bias` is not (H, R, R)
            beside `qkv`.
        BackendError: a backend was requested by name and cannot run this call.
    """
    parts = _check_parts(qkv)
    num_frames, num_patches = _check_grid(grid_size)
    for name, value, choices in (
        ("axis", axis, AXES),
        ("prefix", prefix, PREFIXES),
        ("token_order", token_order, TOKEN_ORDERS),
        ("rotary_pairs", rotary_pairs, PAIRS),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}; got {value!r}")
    if prefix == "frame_mean" and axis != "space":
        raise ValueError(f"prefix='frame_mean' goes with axis='space'; got axis={axis!r}")
    num_prefix_tokens = check_integer("num_prefix_tokens", num_prefix_tokens)
    if num_prefix_tokens < 0:
        raise ValueError(f"num_prefix_tokens must be 0 or more; got {num_prefix_tokens}")
    length, heads, head_dim = parts[0].shape[1], *parts[0].shape[-2:]
    if length != num_prefix_tokens + num_frames * num_patches:
        raise ValueError(
            f"qkv must have L = num_prefix_tokens + T*N = {num_prefix_tokens} + {num_frames}*{num_patches} = "
            f"{num_prefix_tokens + num_frames * num_patches} tokens for grid_size {tuple(grid_size)}; got {length}"
        )
    if heads == 0 or head_dim == 0:
        raise ValueError(f"qkv must have H heads and a head_dim D of at least 1; got {tuple(parts[0].shape)}")
    if parts[0].dtype == torch.float32 and autocast_enabled(parts[0]):
        parts = tuple(part.to(torch.get_autocast_dtype(part.device.type)) for part in parts)

    scale = float(head_dim) ** -0.5 if scale is None else check_number("scale", scale)
    dropout_rate, seed = check_dropout(dropout_rate, seed, parts[0].device)
    valid, masked = _check_valid_frames(valid_frames, parts[0].shape[0], num_frames)
    rotary = check_rotary(rotary, parts[0])
    pairs = None if rotary is None else rotary_pairs
    kind, eps, affine = check_qk_norm(qk_norm, parts[0])
    grid = Grid(
        num_frames, num_patches, axis, num_prefix_tokens, scale, prefix, token_order, dropout_rate, pairs, kind, eps,
        valid, bias is not None,
    )  # fmt: skip
    bias = check_bias(bias, parts[0], grid)
    operands = Operands(seed, rotary, affine, bias)
    if masked is not None:
        attend = partial(_attend_sharing, backend=backend)
        return padded.each(attend, padded.clips_of(masked, grid), parts, operands)
    return _attend_sharing(parts, grid, operands, backend)


def _attend_sharing(
    parts: tuple[torch.Tensor, ...],
    grid: Grid,
    operands: Operands,
    backend: str | None,
) -> torch.Tensor:
    """Keys and values may have fewer heads than queries."""
    heads, (seed, rotary, affine, bias) = parts[0].shape[-2], operands
    if len(parts) == 1 or parts[1].shape[2] == heads:
        return _attend(parts, grid, operands, backend)
    q, k, v = parts
    sharing, outs = heads // k.shape[2], []
    for i in range(sharing):
        mine = None if seed is None else seed + i, rotary, affine, None if bias is None else bias[i::sharing]
        outs.append(_attend((q[:, :, i::sharing], k, v), grid, Operands(*mine), backend))
    return torch.stack(outs, dim=3).flatten(2, 3)


def _attend(
    parts: tuple[torch.Tensor, ...],
    grid: Grid,
    operands: Operands,
    backend: str | None,
) -> torch.Tensor:
    chosen = autograd.OPERATOR.choose(parts, grid, tensors=(*parts, *operands.tensors), requested=backend)
    if chosen == "reference":
        return reference.space_time_attention(parts, grid, operands)
    return autograd.SpaceTimeAttention.apply(grid, *operands.tensors, chosen, *parts)


def _check_parts(qkv: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The packed tensor alone, or q, k and v."""
    if not isinstance(qkv, (tuple, list)):
        check_tensor("qkv", qkv, "(B, L, 3, H, D)")
        if qkv.shape[2] != 3:
            raise ValueError(f"qkv must have shape (B, L, 3, H, D); got {tuple(qkv.shape)}")
        return (qkv,)
    if len(qkv) != 3:
        raise ValueError(f"qkv must be a packed tensor or three tensors q, k and v; got {len(qkv)}")
    check_tensor("q of qkv", qkv[0], "(B, L, H, D)")
    batch, length, heads, head_dim = qkv[0].shape
    for name, part in zip(("k of qkv", "v of qkv"), qkv[1:], strict=True):
        check_tensor(name, part, "(B, L, H, D)", like=("q of qkv", qkv[0]))
    shared = qkv[1].shape[2]
    if shared and heads % shared:
        raise ValueError(f"k of qkv must have a number of heads that divides the {heads} of q; got {shared}")
    check_shape("k of qkv", qkv[1], (batch, length, shared or heads, head_dim), "(B, L, H, D) of q")
    check_shape("v of qkv", qkv[2], tuple(qkv[1].shape), "(B, L, H, D) of k")
    return tuple(qkv)


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


def _check_valid_frames(
    valid_frames: Sequence[int] | torch.Tensor | None, batch: int, num_frames: int
) -> tuple[tuple[int, ...] | None, list[tuple[int, ...]] | None]:
    """How many frames of each sample are valid, or where these are not its first ones, which; None where all are."""
    if valid_frames is None:
        return None, None
    expected = "B integers, the number of valid frames of each sample, or a bool tensor (B, T)"
    if isinstance(valid_frames, torch.Tensor) and valid_frames.dtype == torch.bool:
        if valid_frames.shape != (batch, num_frames):
            raise ValueError(f"valid_frames must be (B, T) = {(batch, num_frames)}; got {tuple(valid_frames.shape)}")
        frames = [tuple(t for t, valid in enumerate(row) if valid) for row in valid_frames.tolist()]
        if any(mine != tuple(range(len(mine))) for mine in frames):
            if not all(frames):
                raise ValueError(
                    f"valid_frames must have a valid frame in each sample; sample {frames.index(())} has none"
                )
            return None, frames
        valid_frames = [len(mine) for mine in frames]
    if isinstance(valid_frames, torch.Tensor):
        if valid_frames.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"valid_frames must be {expected}; got a tensor of {valid_frames.dtype}")
        valid_frames = valid_frames.flatten().tolist()
    elif not isinstance(valid_frames, Sequence):
        raise TypeError(f"valid_frames must be {expected}; got {type(valid_frames).__name__}")
    valid = tuple(check_integer("valid_frames", frames, expected) for frames in valid_frames)
    if len(valid) != batch or not all(1 <= frames <= num_frames for frames in valid):
        raise ValueError(f"valid_frames must be {batch} numbers from 1 to T={num_frames}; got {list(valid)}")
    return (None if all(frames == num_frames for frames in valid) else valid), None

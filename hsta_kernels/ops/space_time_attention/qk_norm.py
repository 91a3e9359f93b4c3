"""Normalization of queries and keys over head_dim: what it may be, and what it does."""

from __future__ import annotations

from typing import NamedTuple

import torch

from hsta_kernels.ops.checks import check_number, check_shape, check_tensor

KINDS = ("layer", "rms")


class QKNorm(NamedTuple):
    """Norms of q and of k over head_dim, the same for all tokens and heads.

    Attributes:
        kind: ``"layer"``, LayerNorm (arXiv 1607.06450), as ViT-22B (arXiv 2302.05442) and CogVideoX have it, or
            ``"rms"``, RMSNorm (arXiv 1910.07467), as Open-Sora has it.
        q_weight, k_weight: (D,) of any floating dtype; None stands for ones.
        q_bias, k_bias: (D,), with ``"layer"`` alone; None stands for zeros.
        eps: added to the variance, or to the mean square.
    """

    kind: str
    q_weight: torch.Tensor | None = None
    k_weight: torch.Tensor | None = None
    q_bias: torch.Tensor | None = None
    k_bias: torch.Tensor | None = None
    eps: float = 1e-6


def check_qk_norm(qk_norm: QKNorm | None, rows: torch.Tensor) -> tuple[str | None, float, torch.Tensor | None]:
    """Kind and eps, and weights and biases as one tensor: of q and of k, weight and bias, (2, 2, D).

    That is float32, or the dtype of `rows` where that is wider. `rows` is one of the call's tensors, (B, L, ..., D).
    """
    if qk_norm is None:
        return None, 0.0, None
    if not isinstance(qk_norm, QKNorm):
        raise TypeError(f"qk_norm must be a hsta_kernels.ops.QKNorm; got {type(qk_norm).__name__}")
    if qk_norm.kind not in KINDS:
        raise ValueError(f"kind of qk_norm must be 'layer' or 'rms'; got {qk_norm.kind!r}")
    eps = check_number("eps of qk_norm", qk_norm.eps)
    if not eps >= 0:
        raise ValueError(f"eps of qk_norm must be 0 or more; got {eps}")
    dtype = torch.promote_types(rows.dtype, torch.float32)
    affine = []
    for name, without in (("q_weight", 1.0), ("q_bias", 0.0), ("k_weight", 1.0), ("k_bias", 0.0)):
        parameter = getattr(qk_norm, name)
        if parameter is None:
            affine.append(torch.full(rows.shape[-1:], without, dtype=dtype, device=rows.device))
            continue
        name = f"{name} of qk_norm"
        if "bias" in name and qk_norm.kind == "rms":
            raise ValueError(f"{name} goes with kind 'layer'; got kind 'rms', which has none")
        check_tensor(name, parameter, "(D,)")
        check_shape(name, parameter, tuple(rows.shape[-1:]), "(D,) of qkv")
        if parameter.device != rows.device:
            raise ValueError(f"{name} must be on the device of qkv, {rows.device}; got {parameter.device}")
        affine.append(parameter.to(dtype))
    return qk_norm.kind, eps, torch.stack(affine).view(2, 2, -1)


def normalized(x: torch.Tensor, affine: torch.Tensor, kind: str, eps: float) -> torch.Tensor:
    """The norm over the last dimension of `x`, by a weight and a bias, `affine` (2, D); in the dtype of these."""
    x = x.to(affine.dtype)
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * affine[0] + affine[1]

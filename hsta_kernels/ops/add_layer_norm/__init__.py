"""Residual addition and the LayerNorm that follows it."""

from __future__ import annotations

import torch

from hsta_kernels.ops.add_layer_norm import autograd, reference
from hsta_kernels.ops.checks import autocast_enabled, check_number, check_shape, check_tensor, check_width


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-6,
    backend: str | None = None,
    norm_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """LayerNorm (arXiv 1607.06450) of ``x + residual`` over the last dimension, and the sum itself.

    In a pre-norm transformer this is the end of one sub-layer and the beginning of the next: `x` is what the sub-layer
    computed, `residual` the stream it is added to. The sum goes on as the stream, its norm into the next projection.

    Args:
        x, residual: same shape (..., C); float32, bfloat16, float16 or float64, both of one dtype. Under autocast they
            may differ; the sum then has the wider of the two.
        weight, bias: the LayerNorm's affine parameters, shape (C,).
        eps: added to the variance.
        backend: ``"cuda"``, ``"triton"``, ``"cpu"``, ``"reference"`` or ``"auto"`` for this call; by default what
            ``set_backend`` chose.
        norm_dtype: of the norm, that of `x` or of `residual`; by default the sum's. Under autocast a projection that
            follows wants the narrower one, and would make a copy of the norm otherwise.

    Returns:
        (layer_norm(x + residual), x + residual), both of shape (..., C).

    Raises:
        TypeError: an argument is not a dense floating-point tensor, dtypes differ outside autocast, or `eps` is not a
            number.
        ValueError: shapes or devices do not fit together, C is 0, or `norm_dtype` is another dtype.
    """
    shape = "(" + ", ".join(["..."] * (x.dim() - 1) + ["C"]) + ")" if isinstance(x, torch.Tensor) else "(..., C)"
    check_tensor("x", x, shape if "," in shape else "(C,)")
    check_width("x", x, shape)
    eps = check_number("eps", eps)
    like = None if autocast_enabled(x) else ("x", x)
    check_tensor("residual", residual, shape if "," in shape else "(C,)", like)
    check_shape("residual", residual, tuple(x.shape), "the shape of x")
    for name, parameter in (("weight", weight), ("bias", bias)):
        check_tensor(name, parameter, "(C,)", like)
        check_shape(name, parameter, (x.shape[-1],), "(C,)")
    wide, narrow = autograd.by_width(x, residual)
    total_dtype = torch.promote_types(x.dtype, residual.dtype)
    norm_dtype = total_dtype if norm_dtype is None else norm_dtype
    if norm_dtype not in (x.dtype, residual.dtype, total_dtype):
        raise ValueError(f"norm_dtype must be {x.dtype} or {residual.dtype}, as x or residual; got {norm_dtype}")
    chosen = autograd.OPERATOR.choose(wide, narrow, tensors=(x, residual, weight, bias), requested=backend)
    if chosen == "reference":
        return reference.add_layer_norm(x, residual, weight, bias, eps, norm_dtype)
    rows = wide.reshape(-1, x.shape[-1]), narrow.reshape(-1, x.shape[-1])
    norm, total = autograd.AddLayerNorm.apply(*rows, weight, bias, eps, norm_dtype, chosen)
    return norm.view(x.shape), total.view(x.shape)

"""The bias, GELU and dropout between the two projections of an MLP."""

from __future__ import annotations

import torch

from hsta_kernels.ops.bias_gelu import autograd, reference
from hsta_kernels.ops.checks import autocast_enabled, check_shape, check_tensor, check_width
from hsta_kernels.ops.philox import check_dropout


def bias_gelu(
    x: torch.Tensor,
    bias: torch.Tensor,
    dropout_rate: float = 0.0,
    seed: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """``dropout(gelu(x + bias))`` in one pass, GELU with the error function (arXiv 1606.08415), as ViT's MLP has it.

    Give it the product of the MLP's first projection before its bias is added. The backward pass recomputes from `x`
    what plain PyTorch saves: GELU's argument and dropout's mask. The mask comes from a counter-based generator and is
    the same on every backend.

    Args:
        x: (..., C); float32, bfloat16, float16 or float64.
        bias: (C,); the dtype of `x` (under autocast any).
        dropout_rate: probability of an element to become zero, in [0, 1), to the nearest 1 / 2**16 that is below 1;
            the others are divided by 1 - dropout_rate.
        seed: of the mask, one int64 on the device of `x`. Without one, PyTorch's generator draws it when
            `dropout_rate` is not 0.
        backend: ``"cuda"``, ``"triton"``, ``"cpu"``, ``"reference"`` or ``"auto"`` for this call; by default what
            ``set_backend`` chose.

    Returns:
        (..., C), dtype of `x`.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, dtypes differ outside autocast, `seed` is not
            int64, or `dropout_rate` is not a number.
        ValueError: shapes or devices do not fit together, C is 0, or `dropout_rate` is outside [0, 1).
    """
    shape = "(" + ", ".join(["..."] * (x.dim() - 1) + ["C"]) + ")" if isinstance(x, torch.Tensor) else "(..., C)"
    check_tensor("x", x, shape if "," in shape else "(C,)")
    check_width("x", x, shape)
    check_tensor("bias", bias, "(C,)", None if autocast_enabled(x) else ("x", x))
    check_shape("bias", bias, (x.shape[-1],), "(C,)")
    dropout_rate, seed = check_dropout(dropout_rate, seed, x.device)
    chosen = autograd.OPERATOR.choose(x, tensors=(x, bias, seed), requested=backend)
    if chosen == "reference":
        return reference.bias_gelu(x, bias.to(x.dtype), dropout_rate, seed)
    rows = x.reshape(-1, x.shape[-1])
    return autograd.BiasGelu.apply(rows, bias.float(), dropout_rate, seed, chosen).view(x.shape)

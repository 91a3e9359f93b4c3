"""Crossmodal space-time attention: one query token attends to the other branch's tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Written out: the third derivatives of PyTorch's own layer norm are wrong (2.13).
from hsta_kernels.ops.add_layer_norm.reference import layer_norm
from hsta_kernels.ops.checks import (
    autocast_enabled,
    check_integer,
    check_number,
    check_shape,
    check_tensor,
    check_width,
    rows_contiguous,
)
from hsta_kernels.ops.cross_modal_attention import autograd, reference
from hsta_kernels.ops.dispatch import call
from hsta_kernels.ops.philox import check_dropout


def cross_modal_attention(
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    q_weight: torch.Tensor,
    q_bias: torch.Tensor,
    k_weight: torch.Tensor,
    k_bias: torch.Tensor,
    v_weight: torch.Tensor,
    v_bias: torch.Tensor,
    num_heads: int,
    eps: float = 1e-6,
    backend: str | None = None,
    *,
    dropout_rate: float = 0.0,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Crossmodal attention of HSTA (arXiv 2405.03202, its CSTA), without the output projection.

    With y = LayerNorm([query_token, tokens]), the result is multi-head attention whose only query is row 0 of y and
    whose keys and values are all rows. Keys and values of the N tokens are never computed: the query absorbs the key
    projection (scores are (Wkᵀ q)·y; the key bias adds a constant that softmax ignores), the value projection meets
    only the weighted mean of y, and LayerNorm folds into both. Absorbed attention, the kernel between the projections,
    then reads the tokens once, as they are. The result equals the direct form up to rounding, at about 1/64 of its
    arithmetic for C = 768 and N = 588.

    All tensors share one dtype (float32, bfloat16, float16, float64) and device; under autocast dtypes may differ.

    Args:
        query_token: (B, C), the other branch's CLS token in this branch's width.
        tokens: (B, N, C), patch tokens; a slice of a longer sequence is read in place.
        norm_weight, norm_bias: (C,), the LayerNorm over the sequence.
        q_weight, k_weight, v_weight: (C, C), as ``nn.Linear`` stores them; q_bias, k_bias, v_bias: (C,). The gradient
            of k_bias is exactly zero.
        num_heads: H; C must be a multiple of it.
        eps: LayerNorm's epsilon.
        backend: ``"cuda"``, ``"triton"``, ``"cpu"``, ``"reference"`` or ``"auto"`` for this call; by default what
            ``set_backend`` chose.
        dropout_rate: probability of an attention probability to become zero, in [0, 1); the others are divided by
            1 - dropout_rate.
        seed: of dropout's mask, one int64 on the device of `tokens`, which gives the same mask on every backend.
            Without one, PyTorch's generator draws it when `dropout_rate` is not 0.

    Returns:
        (B, C), heads concatenated, ready for the output projection.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, dtypes differ outside autocast, `num_heads` is not
            an integer, `eps` or `dropout_rate` is not a number, or `seed` is not int64.
        ValueError: shapes or devices do not fit together, C is 0, C is not a multiple of `num_heads`, `dropout_rate` is
            outside [0, 1), or `seed` is not one number beside `tokens`.
        BackendError: a backend was requested by name and cannot run this call.
    """
    check_tensor("tokens", tokens, "(B, N, C)")
    check_width("tokens", tokens, "(B, N, C)")
    like = None if autocast_enabled(tokens) else ("tokens", tokens)
    batch, _, width = tokens.shape
    check_tensor("query_token", query_token, "(B, C)", like)
    check_shape("query_token", query_token, (batch, width), "(B, C)")
    vectors = {
        "norm_weight": norm_weight, "norm_bias": norm_bias, "q_bias": q_bias, "k_bias": k_bias, "v_bias": v_bias,
    }  # fmt: skip
    for name, vector in vectors.items():
        check_tensor(name, vector, "(C,)", like)
        check_shape(name, vector, (width,), "(C,)")
    matrices = {"q_weight": q_weight, "k_weight": k_weight, "v_weight": v_weight}
    for name, matrix in matrices.items():
        check_tensor(name, matrix, "(C, C)", like)
        check_shape(name, matrix, (width, width), "(C, C)")
    num_heads, eps = check_integer("num_heads", num_heads), check_number("eps", eps)
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads must divide C = {width}; got {num_heads}")

    dropout_rate, seed = check_dropout(dropout_rate, seed, tokens.device)
    tensors = (query_token, tokens, *vectors.values(), *matrices.values())
    chosen = autograd.OPERATOR.choose(tokens, num_heads, dropout_rate, tensors=(*tensors, seed), requested=backend)
    if chosen == "reference":
        weights = (norm_weight, norm_bias, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias)
        return reference.cross_modal_attention(query_token, tokens, *weights, num_heads, eps, dropout_rate, seed)
    if chosen in autograd.WHOLE and like is not None and seed is None:
        arguments = (query_token, tokens, norm_weight, norm_bias, q_weight, q_bias, k_weight, v_weight, v_bias)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return autograd.CrossModalAttention.apply(k_bias, *arguments, num_heads, eps, chosen)
        with torch.no_grad():
            return call(autograd.cross_modal_attention, *arguments, num_heads, eps, chosen)[0]

    head_dim = width // num_heads
    # A copy of its own: sums over strided rows, and gradients that meet in another order, have other last bits.
    y = layer_norm(query_token.clone(memory_format=torch.contiguous_format), norm_weight, norm_bias, eps)
    q = F.linear(y, q_weight, q_bias).view(batch, num_heads, head_dim)
    u = torch.einsum("bhd,hdc->bhc", q, k_weight.view(num_heads, head_dim, width))
    # From here on in float32: u multiplies normalized tokens, so it carries LayerNorm's weight and the softmax scale.
    u = u.float() * (norm_weight.float() * head_dim**-0.5)
    rows = query_token.to(tokens.dtype), rows_contiguous(tokens)
    z = autograd.AbsorbedAttention.apply(u, *rows, k_bias, eps, dropout_rate, seed, chosen)
    of_norm, of_values = norm_bias.float(), v_bias.view(num_heads, head_dim)
    if seed is not None:  # then weights sum to s, and biases are multiplied by it
        z, s = z
        of_norm, of_values = of_norm * s[..., None], of_values * s[..., None]
    z = (z * norm_weight.float() + of_norm).to(q.dtype)
    heads = torch.einsum("bhc,hdc->bhd", z, v_weight.view(num_heads, head_dim, width))
    return (heads + of_values.to(heads.dtype)).flatten(1)

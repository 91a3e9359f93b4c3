"""Crossmodal attention as the paper draws it: keys and values of every token, one query."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Written out: the third derivatives of PyTorch's own layer norm are wrong (2.13).
from hsta_kernels.ops.add_layer_norm.reference import layer_norm
from hsta_kernels.ops.philox import philox, threshold


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
    eps: float,
    dropout_rate: float = 0.0,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Shapes and meaning as in the public function; any floating dtype, differentiable any number of times.

    `seed` is int64 of shape (1,); None where nothing is dropped.
    """
    sequence = torch.cat([query_token[:, None], tokens], dim=1)
    y = layer_norm(sequence, norm_weight, norm_bias, eps)
    q = F.linear(y[:, 0], q_weight, q_bias).unflatten(-1, (num_heads, -1))
    k = F.linear(y, k_weight, k_bias).unflatten(-1, (num_heads, -1))
    v = F.linear(y, v_weight, v_bias).unflatten(-1, (num_heads, -1))
    scores = torch.einsum("bhd,bjhd->bhj", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhj,bjhd->bhd", _weights(scores, dropout_rate, seed), v).flatten(1)


def absorbed_attention(
    u: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    eps: float,
    dropout_rate: float = 0.0,
    seed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """What the kernels compute of it: each head's mean of the normalized rows, weighted by their products with u; with
    dropout also the sum of each head's weights, (B, H), which is no longer 1."""
    rows = torch.cat([query_token[:, None], tokens], dim=1).to(u.dtype)
    rows = layer_norm(rows, rows.new_ones(()), rows.new_zeros(()), eps)
    weights = _weights(torch.einsum("bhc,bjc->bhj", u, rows), dropout_rate, seed)
    return (weights @ rows,) if seed is None else (weights @ rows, weights.sum(-1))


def _weights(scores: torch.Tensor, dropout_rate: float, seed: torch.Tensor | None) -> torch.Tensor:
    """dropout(softmax(scores)) of scores (B, H, rows), the query token's first.

    Word ``row % 4`` of the block of Philox with the counter ``(row // 4, head, 0, sample)`` decides.
    """
    probabilities = scores.softmax(dim=-1)
    if seed is None:
        return probabilities
    batch, heads, rows = scores.shape
    sample, head, block = (torch.arange(size, device=seed.device) for size in (batch, heads, -(-rows // 4)))
    counter = block, head[:, None], torch.zeros_like(block), sample[:, None, None]
    kept = philox(counter, seed).flatten(-2)[..., :rows] >= threshold(dropout_rate)
    return torch.where(kept, probabilities / (1 - dropout_rate), 0.0)

"""Crossmodal attention as the paper draws it: keys and values of every token, one query."""

from __future__ import annotations

import torch
import torch.nn.functional as F


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
) -> torch.Tensor:
    """Shapes and meaning as in the public function; any floating dtype, differentiable any number of times."""
    sequence = torch.cat([query_token[:, None], tokens], dim=1)
    y = F.layer_norm(sequence, sequence.shape[-1:], norm_weight, norm_bias, eps)
    q = F.linear(y[:, 0], q_weight, q_bias).unflatten(-1, (num_heads, -1))
    k = F.linear(y, k_weight, k_bias).unflatten(-1, (num_heads, -1))
    v = F.linear(y, v_weight, v_bias).unflatten(-1, (num_heads, -1))
    scores = torch.einsum("bhd,bjhd->bhj", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhj,bjhd->bhd", scores.softmax(dim=-1), v).flatten(1)

"""Other ways to compute crossmodal attention: keys and values of all tokens, or absorbed in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from hsta_kernels.ops.cross_modal_attention import reference

HEADS, EPS = 12, 1e-6


def direct(*tensors: torch.Tensor) -> torch.Tensor:
    return reference.cross_modal_attention(*tensors, HEADS, EPS)


def direct_sdpa(query, tokens, norm_w, norm_b, q_w, q_b, k_w, k_b, v_w, v_b):
    sequence = torch.cat([query[:, None], tokens], dim=1)
    y = F.layer_norm(sequence, sequence.shape[-1:], norm_w, norm_b, EPS)
    q, k, v = (
        F.linear(rows, w, b).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for rows, w, b in ((y[:, :1], q_w, q_b), (y, k_w, k_b), (y, v_w, v_b))
    )
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)


def absorbed(query, tokens, norm_w, norm_b, q_w, q_b, k_w, k_b, v_w, v_b):
    sequence = torch.cat([query[:, None], tokens], dim=1)
    y = F.layer_norm(sequence, sequence.shape[-1:], norm_w, norm_b, EPS)
    q = F.linear(y[:, 0], q_w, q_b).unflatten(-1, (HEADS, -1))
    head_dim = q.shape[-1]
    u = torch.einsum("bhd,hdc->bhc", q, k_w.unflatten(0, (HEADS, -1)))
    p = (u @ y.transpose(1, 2) * head_dim**-0.5).softmax(-1)
    return torch.einsum("bhc,hdc->bhd", p @ y, v_w.unflatten(0, (HEADS, -1))).flatten(1) + v_b


def contenders() -> dict[str, Callable[..., torch.Tensor]]:
    return {
        "direct": direct,
        "direct SDPA": direct_sdpa,
        "compiled direct": torch.compile(direct, dynamic=False),
        "absorbed": absorbed,
        "compiled absorbed": torch.compile(absorbed, dynamic=False),
    }

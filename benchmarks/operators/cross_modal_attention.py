"""Crossmodal attention, and other ways to compute it: keys and values of all tokens, or absorbed in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F

import hsta_kernels
from benchmarks.case import HEADS, WIDTH, Case, Work, dtypes, operator_case, sdpa_takes
from hsta_kernels.ops.cross_modal_attention import reference

EPS = 1e-6


def direct(*tensors: torch.Tensor) -> torch.Tensor:
    return reference.cross_modal_attention(*tensors, HEADS, EPS)


def direct_sdpa(query, tokens, norm_w, norm_b, q_w, q_b, k_w, k_b, v_w, v_b, attend=F.scaled_dot_product_attention):
    sequence = torch.cat([query[:, None], tokens], dim=1)
    y = F.layer_norm(sequence, sequence.shape[-1:], norm_w, norm_b, EPS)
    q, k, v = (
        F.linear(rows, w, b).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for rows, w, b in ((y[:, :1], q_w, q_b), (y, k_w, k_b), (y, v_w, v_b))
    )
    return attend(q, k, v).transpose(1, 2).flatten(1)


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
        "absorbed": absorbed,
        "compiled absorbed": torch.compile(absorbed, dynamic=False),
        "compiled direct": torch.compile(direct, dynamic=False),
    }


def case(batch: int, tokens: int, backward: bool, dtype: torch.dtype, device: torch.device) -> Case:
    shapes = [(batch, WIDTH), (batch, tokens, WIDTH), (WIDTH,), (WIDTH,), *[(WIDTH, WIDTH), (WIDTH,)] * 3]
    inputs = [torch.randn(s, device=device) for s in shapes]
    inputs = [(t * WIDTH**-0.5 if t.shape == (WIDTH, WIDTH) else t).to(dtype) for t in inputs]
    leaves = [t.detach().requires_grad_(backward) for t in inputs]
    return operator_case(
        "cross_modal_attention",
        f"{'backward' if backward else 'forward'} N={tokens} B={batch}",
        partial(hsta_kernels.ops.cross_modal_attention, num_heads=HEADS),
        contenders(),
        inputs,
        [inputs[0]],
        backward,
        {"SDPA takes": sdpa_takes(lambda attend: direct_sdpa(*leaves, attend=attend))},
        bytes=(2 if backward else 1) * batch * tokens * WIDTH * inputs[0].element_size(),
    )


def works(device: torch.device, quick: bool) -> Iterator[Work]:
    for backward, (short, dtype) in product((False, True), dtypes(quick).items()):
        name = f"cross_modal_attention-{'bwd' if backward else 'fwd'}-{short}"
        yield Work(name, partial(case, 8, 588, backward, dtype, device))

"""Where the CLS tokens look: attention maps for pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .config import SPECIAL, VIDEO


@torch.no_grad()
def cls_attention(model: reference.HSTA, video: Tensor, special: Tensor) -> dict[str, Tensor]:
    """Attention of CLS to the patches in the last self-attention layer of each branch.

    For divided attention this is the sub-layer over space, in which CLS sees the patches of all frames. The
    share that CLS gives itself is left out, so that a map sums to less than 1. The model runs in evaluation
    mode.

    Args:
        model: a fused or a reference model.
        video, special: as for the model.

    Returns:
        Maps by the names ``video`` and ``special``, each (B, num_heads, T', grid height, grid width), float32.
    """
    branches = {"video": VIDEO, "special": SPECIAL}
    attentions = {name: model.blocks[-1].blocks[branch][-1].attn for name, branch in branches.items()}
    inputs: dict[str, Tensor] = {}
    hooks = [
        attn.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]))
        for name, attn in attentions.items()
    ]
    was_training = model.training
    model.eval()
    try:
        model(video, special)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return {
        name: _cls_row(attentions[name], inputs[name]).unflatten(-1, model.config.grids[branch])
        for name, branch in branches.items()
    }


def _cls_row(attn: reference.Attention, x: Tensor) -> Tensor:
    """Probabilities (B, H, T' * N) that CLS gives to the patches of x (B, L, C)."""
    q, k, _ = attn.project(x).float().unbind(2)
    scores = torch.einsum("bhd,blhd->bhl", q[:, 0], k) * q.shape[-1] ** -0.5
    return scores.softmax(dim=-1)[..., reference.NUM_PREFIX_TOKENS :]

"""Attention over time in diffusers (AnimateDiff, Stable Video Diffusion, Latte): an attention processor.

Their temporal blocks attend in (positions, frames, channels): thousands of sequences of a few frames, which libraries
pad to tiles of 64. As one sample with its tokens position by position it is attention over time, and nothing is copied.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.attention import TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn

from hsta_kernels import ops
from hsta_kernels.patching.kernels import has_kernels

# Modules all of whose attention is over time, by class or, in Latte, by name.
OVER_TIME = (TemporalBasicTransformerBlock, TransformerTemporalModel, AnimateDiffTransformer3D)
LATTE = "temporal_transformer_blocks"


def patch(model: nn.Module) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, module in model.named_modules():
        if isinstance(module, OVER_TIME) or name.rpartition(".")[2] == LATTE:
            for inner, attention in module.named_modules():
                if isinstance(attention, Attention):
                    found[f"{name}.{inner}" if name else inner] = _choose(attention)
    return found


def unpatch(model: nn.Module) -> None:
    for module in model.modules():
        processor = getattr(module, "processor", None)
        if isinstance(processor, AttnProcessor):
            module.set_processor(processor.before)  # type: ignore[operator]


def _choose(attention: Attention) -> str | None:
    """Chooses ours, or says why not."""
    processor = attention.processor
    if isinstance(processor, AttnProcessor):
        return None
    if type(processor) is not AttnProcessor2_0:
        return f"its processor is {type(processor).__name__}; AttnProcessor2_0 is replaced"
    if attention.is_cross_attention:
        return "it attends to the prompt, not over time"
    attention.processor = AttnProcessor(processor)
    return None


class AttnProcessor:
    """In place of ``AttnProcessor2_0``, which takes over what is no attention of a few tokens among themselves."""

    def __init__(self, before: AttnProcessor2_0) -> None:
        self.before = before

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if (
            encoder_hidden_states is not None
            or attention_mask is not None
            or attn.spatial_norm is not None
            or attn.group_norm is not None
            or hidden_states.ndim != 3
            or not has_kernels(hidden_states, attn.inner_dim // attn.heads)
        ):
            return self.before(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        positions, frames, _ = hidden_states.shape
        query, key, value = (
            linear(hidden_states).view(1, positions * frames, attn.heads, -1)
            for linear in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        grid = (frames, positions)
        out = ops.space_time_attention((query, key, value), grid, "time", 0, token_order="patch_major")
        out = attn.to_out[1](attn.to_out[0](out.view(positions, frames, -1)))
        out = out + hidden_states if attn.residual_connection else out
        return out / attn.rescale_output_factor

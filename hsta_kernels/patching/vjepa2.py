"""V-JEPA 2 (arXiv 2506.09985) of Hugging Face transformers: q and k are rotated by the kernels.

The original rotates thirds of a head by a token's moment, row and column, in some fifty PyTorch operations for q and as
many for k, and calculates the angles in every layer anew. All samples, heads and layers have them in common: one table
is read off transformers' own code, once for a grid, and given to attention.

The angles are float32, for halves too. There the original calculates them in 8 or 11 bits: 0.9, the exponent of a
frequency, becomes 0.8984 in bfloat16, and an angle of 15 is off by up to 0.03. By the error rule (tests/tolerances.py)
results are measured against exact arithmetic, and those of float32 angles are the nearest.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.vjepa2 import modeling_vjepa2 as original

from hsta_kernels import ops
from hsta_kernels.onlookers import onlooker
from hsta_kernels.ops.space_time_attention.rotary import Rotary
from hsta_kernels.patching.attention_interface import NAME
from hsta_kernels.patching.kernels import has_kernels

# What follows the result of a call that asks for no attention weights: nothing in transformers 4.57, None in 5.
_ARGUMENTS = inspect.signature(original.VJEPA2RopeAttention.forward).parameters
_NO_WEIGHTS: tuple[None, ...] = () if "output_attentions" in _ARGUMENTS else (None,)
_MOST_TABLES = 4  # of 64 frames of 384 px one has 2 x 4.7 MB

_tables: dict[tuple[int, int, int, torch.device], Rotary] = {}  # of every model: no part of one, nor of a copy of it


def patch(model: nn.Module) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, module in model.named_modules():
        if type(module) in (original.VJEPA2RopeAttention, VJEPA2RopeAttention):
            module.__class__, found[name] = VJEPA2RopeAttention, None
    return found


def unpatch(model: nn.Module) -> None:
    kind: Any = original.VJEPA2RopeAttention
    for module in model.modules():
        if type(module) is VJEPA2RopeAttention:
            module.__class__ = kind


class VJEPA2RopeAttention(original.VJEPA2RopeAttention):
    """In place of the class of the same name: same parameters, arguments and results."""

    def forward(
        self, hidden_states: Tensor, position_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:  # transformers 4.57 and 5 return tuples of different lengths
        asks_more = any(more is not None and more is not False for more in (*args, *kwargs.values()))
        if position_mask is not None or asks_more or not self._can_run(hidden_states):
            return super().forward(hidden_states, position_mask, *args, **kwargs)
        qkv: Any = tuple(
            linear(hidden_states).unflatten(-1, (self.num_attention_heads, -1))
            for linear in (self.query, self.key, self.value)
        )
        out = ops.space_time_attention(
            qkv, (1, hidden_states.shape[1]), "joint", 0, scale=self.scaling,
            dropout_rate=self.dropout_prob if self.training else 0.0, rotary=self._rotary(hidden_states),
        )  # fmt: skip
        return self.proj(out.flatten(2)), *_NO_WEIGHTS

    def _can_run(self, hidden_states: Tensor) -> bool:
        """Whether ours is the attention that is chosen, and has a kernel."""
        return (
            self.config._attn_implementation == NAME
            and self.attention_head_size % 2 == 0
            and has_kernels(hidden_states, self.attention_head_size)
            and onlooker((hidden_states,)) is None
        )

    def _rotary(self, hidden_states: Tensor) -> Rotary:
        """cos and sin, (L, D) each: kept for numbers, and part of the graph where a compiler looks on."""
        if torch.compiler.is_compiling() or type(hidden_states) is not Tensor:
            return self._angles(hidden_states)
        key = (self.attention_head_size, self.grid_size, hidden_states.shape[1], hidden_states.device)
        rotary = _tables.get(key)
        if rotary is None:
            with torch.inference_mode(False):  # else no training could save them
                rotary = self._angles(hidden_states)
            if len(_tables) >= _MOST_TABLES:
                _tables.clear()
            _tables[key] = rotary
        return rotary

    @torch.no_grad()
    def _angles(self, hidden_states: Tensor) -> Rotary:
        """What the original makes of the pairs (1, 0) and (0, 1): (cos, sin) and (-sin, cos), each channel its own."""
        channel = torch.arange(self.attention_head_size, device=hidden_states.device)
        first = (channel % 2 == 0).expand(1, 1, hidden_states.shape[1], -1)
        places = self.get_position_ids(hidden_states)
        of_first, of_second = (self.apply_rotary_embeddings(pairs.float(), places) for pairs in (first, ~first))
        cos, sin = torch.where(first, of_first, of_second), torch.where(first, -of_second, of_first)
        return cos[0, 0], sin[0, 0]

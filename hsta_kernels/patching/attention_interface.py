"""``attn_implementation="hsta"`` of Hugging Face transformers: attention of all tokens with all tokens.

transformers looks attention up by name. Importing this file enters ours; `patch` does, and chooses it for a model.
"""

from __future__ import annotations

import inspect
import threading
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface, PreTrainedModel

from hsta_kernels import ops
from hsta_kernels.patching.kernels import has_kernels

NAME = "hsta"
MODELS = (
    "transformers.models.videomae.modeling_videomae",
    "transformers.models.vivit.modeling_vivit",
    "transformers.models.vjepa2.modeling_vjepa2",
    "hsta_kernels.patching.vjepa2",  # its attention, replaced
)
_BEFORE = "_hsta_before"  # an attribute of a module: what its configuration said before
_HANDLES = "_hsta_handles"  # of a model: those of the hooks that let attention weights come from where they came


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query, key, value (B, H, L, D), read in place; returns (B, L, H, D) and no weights.

    Masks, causal attention, keys of fewer heads or of another length, and dtypes and heads that have no kernel
    go to PyTorch's own attention.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if (
        attention_mask is not None
        or causal
        or more.get("position_bias") is not None
        or not (query.shape == key.shape == value.shape)
        or not has_kernels(query)
    ):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **more
        )
    qkv = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return ops.space_time_attention(qkv, (1, query.shape[2]), "joint", 0, scale=scaling, dropout_rate=dropout), None


def patch(model: nn.Module) -> dict[str, str | None]:
    before: dict[int, str] = {}  # what was chosen, by configuration, which modules share
    found: dict[str, str | None] = {}
    for name, module in model.named_modules():
        if type(module).__module__ not in MODELS:
            continue
        config: Any = getattr(module, "config", None)
        if config is not None and config._attn_implementation != NAME:
            before[id(config)] = config._attn_implementation
            config._attn_implementation_internal = NAME
        if id(config) in before:
            module.__dict__[_BEFORE] = before[id(config)]
        if isinstance(module, PreTrainedModel):
            _give_way(module)
        elif config is not None and hasattr(module, "is_causal") and hasattr(module, "scaling"):  # it attends
            found[name] = None
    return found


def unpatch(model: nn.Module) -> None:
    """Somebody may have chosen another implementation since: that stays."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        before = module.__dict__.pop(_BEFORE, None)
        if before is not None and config._attn_implementation == NAME:
            config._attn_implementation_internal = before
        for handle in module.__dict__.pop(_HANDLES, ()):
            handle.remove()


def _give_way(model: PreTrainedModel) -> None:
    """Attention weights come from nobody but eager attention: lets a call for them have it, if it had it before."""
    if _HANDLES not in model.__dict__:
        model.__dict__[_HANDLES] = (
            model.register_forward_pre_hook(_before_call, with_kwargs=True),
            model.register_forward_hook(_after_call, always_call=True),
        )


_calls = threading.local()  # .changed: for each call that is running, the configuration it changed or None


def _before_call(model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> None:
    if torch.compiler.is_compiling():
        return
    if not hasattr(_calls, "changed"):
        _calls.changed = []
    config: Any = model.config
    arguments = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    asked = (arguments | arguments.get("kwargs", {})).get("output_attentions")
    if asked is None:
        asked = getattr(config, "output_attentions", False)
    changed = None
    if asked and config._attn_implementation == NAME and _BEFORE in model.__dict__:
        config._attn_implementation_internal = model.__dict__[_BEFORE]
        changed = config
    _calls.changed.append(changed)


def _after_call(model: PreTrainedModel, args: tuple, output: Any) -> None:
    if torch.compiler.is_compiling():
        return
    config = _calls.changed.pop()
    if config is not None:
        config._attn_implementation_internal = NAME


AttentionInterface.register(NAME, attention_forward)

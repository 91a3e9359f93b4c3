"""The published models by name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from .config import PUBLISHED_HEADS, HSTAConfig
from .hsta import HSTA

_WIDTHS = {"tiny": (96, 192), "small": (192, 384), "base": (384, 768)}
# The authors' training script uses four blocks; their model definitions have three, with deeper video stacks.
_DEPTHS = {"": ((1, 2),) * 4, "_k3": ((1, 4),) * 3}

_MODELS = {
    f"hsta_{size}{suffix}_224": {"embed_dim": dims, "num_heads": PUBLISHED_HEADS[dims], "depth": depth}
    for suffix, depth in _DEPTHS.items()
    for size, dims in _WIDTHS.items()
}


def list_models() -> list[str]:
    """Names for ``create_model``; ``k3`` stands for a depth of 3 x (1, 4) instead of 4 x (1, 2)."""
    return list(_MODELS)


def create_model(name: str, **overrides: Any) -> HSTA:
    """A fused model with new weights.

    Args:
        name: one of ``list_models()``.
        overrides: fields of ``HSTAConfig`` to set otherwise, such as ``num_classes`` or
            ``attention="joint"``.

    Raises:
        ValueError: there is no such model, or an override is not possible.
    """
    if name not in _MODELS:
        close = get_close_matches(str(name), _MODELS, n=3, cutoff=0.4) or list(_MODELS)
        raise ValueError(f"there is no model {name!r}; did you mean {' or '.join(close)}?")
    return HSTA(HSTAConfig.from_dict({**_MODELS[name], **overrides}))

"""Checkpoints of the authors' code (`OceanSummerDay/HSTA_MER`): state dict, and configuration it implies."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsta_kernels import tensor_files

from .config import IN_CHANNELS, PUBLISHED_HEADS, HSTAConfig

# Where training scripts keep a state dict, and what PyTorch's wrappers put before its names; the first found is taken.
_WRAPPERS = ("model", "module", "state_dict", "_orig_mod", "model_ema", "state_dict_ema", "ema")
_WRAPPED_INSIDE = ("_orig_mod", "module")  # a block that was compiled or distributed by itself
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, beside the names under "module."

_logger = logging.getLogger("hsta_kernels")


def read_state_dict(checkpoint: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The bare state dict of a checkpoint, and what to call the checkpoint in messages."""
    if isinstance(checkpoint, Mapping):
        source, content = "the state dict", checkpoint
    else:
        source, content = os.fspath(checkpoint), _load(Path(checkpoint))
    opened = []
    while wrapped := _wrapped(content):
        without = f" without {_COUNTER}" if _COUNTER in content else ""
        (name, content), *others = wrapped.items()
        opened.append(repr(name) + without)
        if others:
            left = listing(repr(other) for other, _ in others)
            reason = "to load another, pass it alone, as a state dict"
            _logger.warning("%s holds %r, which is loaded, beside %s: %s", source, name, left, reason)
    if not isinstance(content, Mapping) or not content:
        found = "no tensors" if isinstance(content, Mapping) else f"{type(content).__name__}, not a state dict"
        raise ValueError(f"{source} is not a checkpoint: it holds {found}")
    strange = [name for name, value in content.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if strange:
        found = listing(f"{name!r} ({type(content[name]).__name__})" for name in strange)
        raise ValueError(f"{source} is not a checkpoint: a state dict holds tensors by name, but it has {found}")
    state_dict: dict[str, Tensor] = {}
    for name, tensor in content.items():
        bare = ".".join(part for part in name.split(".") if part not in _WRAPPED_INSIDE)
        if bare in state_dict:
            raise ValueError(f"{source} holds {bare} twice, once as {name}")
        state_dict[bare] = tensor
    if opened:
        _logger.info("%s: loaded what is in %s", source, ", in it in ".join(opened))
    if renamed := listing(name for name in content if name not in state_dict):
        _logger.info("%s: removed %s from %s", source, " and ".join(_WRAPPED_INSIDE), renamed)
    return state_dict, source


def _wrapped(content: Any) -> dict[str, Any]:
    """What lies in wrappers, by their names: dictionaries in the content, or tensors all of whose names begin so."""
    if not isinstance(content, Mapping):
        return {}
    if found := {name: content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)}:
        return found
    parts = {name: str(name).partition(".") for name in content if name != _COUNTER}
    if not all(wrapper in _WRAPPERS and rest for wrapper, _, rest in parts.values()):
        return {}
    split: dict[str, dict[str, Any]] = {wrapper: {} for wrapper in _WRAPPERS}
    for name, (wrapper, _, rest) in parts.items():
        split[wrapper][rest] = content[name]
    return {wrapper: names for wrapper, names in split.items() if names}


def config_of(state_dict: Mapping[str, Tensor], source: str, overrides: Mapping[str, Any]) -> HSTAConfig:
    """The configuration that the shapes of a state dict imply, completed by ``overrides``."""

    def shape(name: str, rank: int) -> torch.Size:
        if name not in state_dict:
            names = f"it lacks {name}, it has {listing(state_dict)}"
            raise ValueError(f"{source} is not a checkpoint of an HSTA model: {names}")
        if state_dict[name].ndim != rank:
            found = tuple(state_dict[name].shape)
            raise ValueError(f"{source} is not a checkpoint of an HSTA model: {name} has shape {found}")
        return state_dict[name].shape

    patch_embed = [shape(f"patch_embed.{branch}.proj.weight", 5) for branch in (0, 1)]
    if any(s[1] != IN_CHANNELS or s[2] != patch_embed[0][2] or s[3] != s[4] for s in patch_embed):
        shapes = ", ".join(str(tuple(s)) for s in patch_embed)
        raise ValueError(f"{source} has patch embeddings that HSTA does not know, of shapes {shapes}")
    embed_dim = (patch_embed[0][0], patch_embed[1][0])
    hidden = [shape(f"blocks.0.blocks.{branch}.0.mlp.fc1.weight", 2)[0] for branch in (0, 1)]
    num_classes, features = shape("head.weight", 2)
    head = overrides.get("head") or ("cls_last" if features == 2 * sum(embed_dim) else "cls")
    implied = {
        "embed_dim": embed_dim,
        "patch_size": tuple(s[3] for s in patch_embed),
        "tubelet_size": patch_embed[0][2],
        "mlp_ratio": tuple(width / dim for width, dim in zip(hidden, embed_dim, strict=True)),
        "depth": _depth(state_dict),
        "num_classes": num_classes,
        "attention": "divided" if any(".norm_time." in name for name in state_dict) else "joint",
    }
    heads = _heads(embed_dim, source, overrides)
    config = HSTAConfig.from_dict({**implied, **overrides, "num_heads": heads, "head": head})
    for name, value in implied.items():
        if getattr(config, name) != value:
            raise ValueError(f"{source} has {name} {value}, which contradicts {name}={overrides[name]!r}")
    if config.head_width != features:
        raise ValueError(f"{source} has a classifier of {features} features, head={head!r} has {config.head_width}")
    return config


def listing(names: Iterable[str]) -> str:
    """The first three, and how many more; empty if there are none."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _load(path: Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a checkpoint: it is not a file")
    if path.suffix == ".safetensors":
        return tensor_files.load(path)[0]
    try:
        # The authors' training script stores its arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # an unpickler fed with arbitrary bytes raises anything
        reason = "it is damaged, or holds more than tensors and plain values"
        raise ValueError(f"{path} is not a checkpoint: {reason} ({type(error).__name__})") from error


def _heads(embed_dim: tuple[int, int], source: str, overrides: Mapping[str, Any]) -> Any:
    heads = overrides.get("num_heads")
    if heads is None:
        heads = PUBLISHED_HEADS.get(embed_dim)
    if heads is None:
        raise ValueError(f"{source}: no model of embed_dim {embed_dim} was published: give its num_heads, a pair")
    return heads


def _depth(state_dict: Mapping[str, Tensor]) -> tuple[tuple[int, int], ...]:
    """Layers of both branches in each block, up to the first gap; loading finds names beyond it."""
    matches = (re.match(r"blocks\.(\d+)\.blocks\.([01])\.(\d+)\.", name) for name in state_dict)
    layers = {tuple(map(int, match.groups())) for match in matches if match}

    def count(block: int, branch: int) -> int:
        n = 0
        while (block, branch, n) in layers:
            n += 1
        return n

    depth: list[tuple[int, int]] = []
    while all(pair := (count(len(depth), 0), count(len(depth), 1))):
        depth.append(pair)
    return tuple(depth)

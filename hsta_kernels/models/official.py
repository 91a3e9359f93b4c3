"""Checkpoints of the authors' code (`OceanSummerDay/HSTA_MER`): state dict, and configuration it implies."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsta_kernels import tensor_files

from .config import IN_CHANNELS, PUBLISHED_HEADS, HSTAConfig

_WRAPPERS = ("model", "module", "state_dict")
_PREFIXES = ("module.", "model.")


def read_state_dict(checkpoint: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The bare state dict of a checkpoint, and what to call the checkpoint in messages."""
    if isinstance(checkpoint, Mapping):
        source, content = "the state dict", checkpoint
    else:
        source, content = os.fspath(checkpoint), _load(Path(checkpoint))
    while isinstance(content, Mapping):
        inner = [content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{source} is not a checkpoint: it holds {type(content).__name__}, not a state dict")
    strange = [name for name, value in content.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if strange:
        raise ValueError(f"{source} is not a checkpoint: {strange[0]!r} in its state dict is not a tensor")
    state_dict = dict(content)
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state_dict)), None):
        state_dict = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
    return state_dict, source


def config_of(state_dict: Mapping[str, Tensor], source: str, overrides: Mapping[str, Any]) -> HSTAConfig:
    """The configuration that the shapes of a state dict imply, completed by ``overrides``."""

    def shape(name: str, rank: int) -> torch.Size:
        if name not in state_dict:
            raise ValueError(f"{source} is not a checkpoint of an HSTA model: it lacks {name}")
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
    config = HSTAConfig.from_dict({**implied, "num_heads": _heads(embed_dim, overrides), **overrides, "head": head})
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


def _heads(embed_dim: tuple[int, int], overrides: Mapping[str, Any]) -> Any:
    heads = overrides.get("num_heads")
    if heads is None:
        heads = PUBLISHED_HEADS.get(embed_dim)
    if heads is None:
        raise ValueError(f"no model of embed_dim {embed_dim} was published: give its num_heads, a pair")
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

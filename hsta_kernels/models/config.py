"""What describes one HSTA model: sizes, depth, attention variant, head and drop rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

SPECIAL, VIDEO = 0, 1  # the branches' numbers, in the names of parameters and in pairs of the configuration
SPECIAL_FRAMES = 2  # onset and apex
IN_CHANNELS = 3

# Heads for each embed_dim that the authors' code defines, which are more sizes than it names.
PUBLISHED_HEADS = {
    (96, 192): (3, 3),
    (128, 256): (4, 4),
    (192, 384): (6, 6),
    (224, 448): (7, 7),
    (384, 768): (12, 12),
}


@dataclass(frozen=True)
class HSTAConfig:
    """Sizes of an HSTA model (arXiv 2405.03202). The defaults: the base model of the authors' script.

    Pairs hold one value for each branch, by its number in the parameters' names: 0 for the special frames, 1 for the
    video. NumPy's numbers are taken for Python's, lists and arrays for tuples; what is stored is plain Python.

    Args:
        image_size: height and width of a frame in pixels; a border on the right and below is dropped where
            a patch size does not divide it.
        patch_size: height and width of a patch in pixels.
        embed_dim: width of a token.
        num_heads: attention heads; must divide the width.
        mlp_ratio: hidden width of the MLP over the token width.
        depth: for each HSTA block, the number of self-attention layers of the two branches.
        num_frames: frames of the video; a multiple of ``tubelet_size``.
        tubelet_size: frames a token spans (1 or 2: there are two special frames).
        attention: ``"divided"``, attention over time and then over space, or ``"joint"``, over both at once.
        head: what the classifier reads of both branches: ``"cls"`` tokens, ``"cls_last"`` (CLS and last
            tokens), or the ``"mean"`` of all tokens.
        num_classes: number of logits.
        drop_rate: dropout after the position table, the attention projections and both MLP layers.
        attn_drop_rate: dropout of attention probabilities.
        drop_path_rate: probability that the last layer is skipped for a sample; rises linearly from 0.
        head_drop_rate: dropout before the classifier.
        position_size: ``num_frames`` and ``image_size`` of the model whose weights these were before they were trained
            on with others: its position tables are stretched over this model's grid. None for this model's own.

    Raises:
        ValueError: a field has a wrong type or an impossible value; the message names the field.
    """

    image_size: int = 224
    patch_size: tuple[int, int] = (12, 16)
    embed_dim: tuple[int, int] = (384, 768)
    num_heads: tuple[int, int] = (12, 12)
    mlp_ratio: tuple[float, float] = (4.0, 4.0)
    depth: tuple[tuple[int, int], ...] = ((1, 2),) * 4
    num_frames: int = 6
    tubelet_size: int = 2
    attention: Literal["divided", "joint"] = "divided"
    head: Literal["cls", "cls_last", "mean"] = "cls"
    num_classes: int = 7
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    head_drop_rate: float = 0.0
    position_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        for name in ("image_size", "num_frames", "tubelet_size", "num_classes"):
            self._require(name, _is_count, "a positive integer")
        for name in ("patch_size", "embed_dim", "num_heads"):
            self._require(name, _is_pair_of(_is_count), "two positive integers")
        self._require("mlp_ratio", _is_pair_of(_is_positive), "two positive numbers")
        self._require("depth", _is_depth, "pairs (special layers, video layers) of positive integers")
        self._require("attention", ("divided", "joint").__contains__, "'divided' or 'joint'")
        self._require("head", ("cls", "cls_last", "mean").__contains__, "'cls', 'cls_last' or 'mean'")
        for name in ("drop_rate", "attn_drop_rate", "drop_path_rate", "head_drop_rate"):
            self._require(name, lambda rate: _is_number(rate) and 0 <= rate < 1, "a number in [0, 1)")

        size, heads, tubelet = self.image_size, self.num_heads, self.tubelet_size
        self._require("patch_size", lambda sizes: max(sizes) <= size, f"no larger than image_size {size}")
        self._require(
            "embed_dim",
            lambda dims: not any(map(int.__mod__, dims, heads)),
            f"multiples of num_heads {heads}",
        )
        self._require("tubelet_size", lambda tubelet: tubelet <= SPECIAL_FRAMES, "1 or 2")
        self._require("num_frames", lambda n: n % tubelet == 0, f"a multiple of tubelet_size {tubelet}")
        self._require(
            "position_size",
            lambda pair: (
                pair is None
                or (_is_pair_of(_is_count)(pair) and pair[0] % tubelet == 0 and pair[1] >= max(self.patch_size))
            ),
            f"None, or frames (a multiple of tubelet_size {tubelet}) and a side no smaller than a patch",
        )

    def _require(self, name: str, is_good: Callable[[Any], Any], expected: str) -> None:
        value = getattr(self, name)
        if not is_good(value):
            raise ValueError(f"{name} must be {expected}, got {value!r}")

    @property
    def frames(self) -> tuple[int, int]:
        """Frames each branch takes: two special ones, and the video."""
        return (SPECIAL_FRAMES, self.num_frames)

    @property
    def grids(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """For each branch, tokens along time, height and width."""
        return self._grids(self.num_frames, self.image_size)

    @property
    def position_grids(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """The ``grids`` that the position tables are of, before they are stretched over those of the model."""
        return self._grids(*(self.position_size or (self.num_frames, self.image_size)))

    def _grids(self, num_frames: int, image_size: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        special, video = (
            (frames // self.tubelet_size, image_size // patch, image_size // patch)
            for frames, patch in zip((SPECIAL_FRAMES, num_frames), self.patch_size, strict=True)
        )
        return special, video

    @property
    def head_width(self) -> int:
        """Number of features the classifier reads."""
        return sum(self.embed_dim) * (2 if self.head == "cls_last" else 1)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as JSON can hold them and ``from_dict`` takes them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HSTAConfig:
        """A configuration from its fields by name; fields not given keep their defaults.

        Raises:
            ValueError: a name is not a field, or a value is not possible for it.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"{name!r} is not a field of HSTAConfig; the fields are {', '.join(known)}")
        return cls(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value  # JSON knows lists only


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and 0 < value < float("inf")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_pair_of(is_good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and len(value) == 2 and all(map(is_good, value))


def _is_depth(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(map(_is_pair_of(_is_count), value))

"""Which tokens attend to which: what every implementation of space-time attention is told."""

from __future__ import annotations

from typing import NamedTuple

AXES = ("time", "space", "joint")
PREFIXES = ("all", "none", "frame_mean")
TOKEN_ORDERS = ("time_major", "patch_major")


class Grid(NamedTuple):
    """The arguments of `space_time_attention` but the tensors, checked."""

    num_frames: int
    num_patches: int
    axis: str
    num_prefix_tokens: int
    scale: float
    prefix: str = "all"
    token_order: str = "time_major"
    dropout_rate: float = 0.0
    rotary_pairs: str | None = None  # None where nothing is rotated
    qk_norm: str | None = None  # None where nothing is normalized
    qk_norm_eps: float = 0.0
    valid_frames: tuple[int, ...] | None = None
    biased: bool = False  # whether a bias is added to the scores

    @property
    def stats_of_prefix(self) -> int:
        """How many prefix tokens there are whose softmax is over several groups."""
        return self.num_prefix_tokens if self.prefix == "all" and self.axis != "joint" else 0

    @property
    def group_rows(self) -> int:
        """R, how many rows a group has: the prefix, unless it takes no part, and the group's patches."""
        patches = self.num_frames if self.axis == "time" else self.num_patches
        patches = self.num_frames * self.num_patches if self.axis == "joint" else patches
        return patches + (0 if self.prefix == "none" else self.num_prefix_tokens)

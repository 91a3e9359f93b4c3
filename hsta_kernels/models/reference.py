"""HSTA in plain PyTorch: no kernels, nothing clever. This is what the fused model is measured against.

Two branches run their own stacks of self-attention layers (USTA, "unimodal space-time attention") and then exchange
information through their CLS tokens (crossmodal attention; the paper's CSTA, "crossmodal space-time attention").
Parameter names are those of the authors' released code, so state dicts can be exchanged with it.

What takes or returns both branches' tensors has the video first, then the special frames. What there is once a branch
(modules, pairs of the configuration) is indexed by the branch's number in those names: ``SPECIAL``, ``VIDEO``.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import IN_CHANNELS, SPECIAL, VIDEO, HSTAConfig
from .former_names import former_names
from .plain import is_plain_linear
from .pretrained import Checkpoints

EPS = 1e-6  # of every layer norm
NUM_PREFIX_TOKENS = 1  # CLS


def visible_tokens(grid: tuple[int, int], axis: str, device: torch.device | None = None) -> Tensor:
    """Who attends to whom: a boolean matrix (query, key) over CLS and ``grid = (T, N)`` patches, time-major.

    ``"time"``: patches at the same place; ``"space"``: patches of the same frame; ``"joint"``: all. A patch
    also sees CLS, and CLS sees everything. This is the convention of Motionformer's divided attention and of
    Frozen-in-Time. TimeSformer differs: it leaves CLS out of attention over time, and over space gives each
    frame a copy of CLS and averages the copies.
    """
    num_frames, num_patches = grid
    patch = torch.arange(num_frames * num_patches, device=device)
    group = {"time": patch % num_patches, "space": patch // num_patches, "joint": patch * 0}[axis]
    return F.pad(group[:, None] == group, (NUM_PREFIX_TOKENS, 0, NUM_PREFIX_TOKENS, 0), value=True)


def position_table(grid: tuple[int, int, int], known: tuple[int, int, int], dim: int) -> Tensor:
    """Positions of CLS and of a ``grid``, (1 + tokens, dim), float64: those of the ``known`` grid, stretched over it.

    Between known positions they are interpolated along each axis, and as far from the border as in a resized picture.
    """
    table = sinusoid_table(NUM_PREFIX_TOKENS + math.prod(known), dim)
    if grid == known:
        return table
    prefix, tokens = table[:NUM_PREFIX_TOKENS], table[NUM_PREFIX_TOKENS:].T.reshape(1, dim, *known)
    stretched = F.interpolate(tokens, grid, mode="trilinear", align_corners=False)
    return torch.cat([prefix, stretched.reshape(dim, -1).T])


def sinusoid_table(num_positions: int, dim: int) -> Tensor:
    """Positions (num_positions, dim), float64: sines in even columns, cosines in odd (Vaswani et al. 2017, 3.5)."""
    column = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(num_positions)[:, None] / 10000 ** (2 * (column // 2) / dim)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())


class DropPath(nn.Module):
    """Stochastic depth: in training, a residual branch is dropped for a sample with probability ``rate``."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)


class Attention(nn.Module):
    """Multi-head self-attention over CLS and patches with one packed projection; keys have no bias."""

    def __init__(self, dim: int, num_heads: int, drop: float, attn_drop: float):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values: (B, L, C) -> (B, L, 3, H, D)."""
        if is_plain_linear(self.qkv, bias=False):
            qkv = F.linear(x, self.qkv.weight, self.qkv_bias())
        else:
            qkv = self.qkv(x)
            qkv = qkv + self.qkv_bias().to(qkv.dtype)
        return qkv.unflatten(-1, (3, self.num_heads, -1))

    def qkv_bias(self) -> Tensor:
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def attend(self, qkv: Tensor, grid: tuple[int, int], axis: str) -> Tensor:
        """Attention among the tokens that see each other: (B, L, 3, H, D) -> (B, L, H, D)."""
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, L, D)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = scores.masked_fill(~visible_tokens(grid, axis, qkv.device), float("-inf"))
        return (self.attn_drop(scores.softmax(dim=-1)) @ v).transpose(1, 2)

    def output(self, qkv: Tensor, grid: tuple[int, int], axis: str) -> Tensor:
        """What follows the packed projection: (B, L, 3, H, D) -> (B, L, C)."""
        return self.proj_drop(self.proj(self.attend(qkv, grid, axis).flatten(2)))

    def forward(self, x: Tensor, grid: tuple[int, int], axis: str) -> Tensor:
        return self.output(self.project(x), grid, axis)


class MLP(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, drop: float):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class Layer(nn.Module):
    """One USTA layer. Divided attention has a sub-layer over time, unless the branch has a single moment, and
    one over space; joint attention has a single one over both."""

    attention_class, mlp_class = Attention, MLP

    def __init__(self, config: HSTAConfig, branch: int, drop_path: float):
        super().__init__()
        dim, heads = config.embed_dim[branch], config.num_heads[branch]
        frames, height, width = config.grids[branch]
        self.grid = (frames, height * width)
        self.axis = "joint" if config.attention == "joint" else "space"
        self.has_time = config.attention == "divided" and frames > 1
        if self.has_time:
            self.norm_time = nn.LayerNorm(dim, EPS)
            self.attn_time = self.attention_class(dim, heads, config.drop_rate, config.attn_drop_rate)
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = self.attention_class(dim, heads, config.drop_rate, config.attn_drop_rate)
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = self.mlp_class(dim, int(dim * config.mlp_ratio[branch]), config.drop_rate)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if self.has_time:
            x = x + self.drop_path(self.attn_time(self.norm_time(x), self.grid, "time"))
        x = x + self.drop_path(self.attn(self.norm1(x), self.grid, self.axis))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CrossAttention(nn.Module):
    """Multi-head attention whose only query is row 0: (B, L, C) -> (B, C)."""

    def __init__(self, dim: int, num_heads: int, drop: float, attn_drop: float):
        super().__init__()
        self.num_heads = num_heads
        self.wq = nn.Linear(dim, dim)
        self.wk = nn.Linear(dim, dim)
        self.wv = nn.Linear(dim, dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, 1 or L, D)
            for y in (self.wq(x[:, :1]), self.wk(x), self.wv(x))
        )
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        return (self.attn_drop(scores.softmax(dim=-1)) @ v).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_drop(self.proj(self.attend(x)))


class CrossModalAttention(nn.Module):
    """A CLS token, brought to the width of the other branch, reads that branch's patches. No MLP."""

    def __init__(self, config: HSTAConfig, branch: int, drop_path: float):
        super().__init__()
        dim, heads = config.embed_dim[branch], config.num_heads[branch]
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = CrossAttention(dim, heads, config.drop_rate, config.attn_drop_rate)
        self.drop_path = DropPath(drop_path)

    def forward(self, cls: Tensor, patches: Tensor) -> Tensor:
        x = torch.cat([cls[:, None], patches], dim=1)
        return cls + self.drop_path(self.attn(self.norm1(x)))


class Block(nn.Module):
    """One HSTA block: the layers of each branch, then both directions of crossmodal attention on their outputs."""

    layer_class, stack_class, cross_modal_attention_class = Layer, nn.Sequential, CrossModalAttention

    def __init__(self, config: HSTAConfig, drop_paths: list[list[float]]):
        super().__init__()
        dim = config.embed_dim
        self.blocks: Any = nn.ModuleList(
            self.stack_class(*(self.layer_class(config, branch, rate) for rate in drop_paths[branch]))
            for branch in (0, 1)
        )
        self.projs: Any = nn.ModuleList(_norm_gelu_linear(dim[i], dim[1 - i]) for i in (0, 1))
        self.fusion: Any = nn.ModuleList(
            self.cross_modal_attention_class(config, 1 - i, drop_paths[i][-1]) for i in (0, 1)
        )
        self.revert_projs: Any = nn.ModuleList(_norm_gelu_linear(dim[1 - i], dim[i]) for i in (0, 1))

    def forward(self, video: Tensor, special: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + T' * N, C) of the video and of the special frames, after the block."""
        xs = [self.blocks[SPECIAL](special), self.blocks[VIDEO](video)]
        classes = [self.fusion[i](self.projs[i](xs[i][:, 0]), xs[1 - i][:, 1:]) for i in (0, 1)]
        xs = [
            torch.cat([revert(cls)[:, None], x[:, 1:]], dim=1)
            for revert, cls, x in zip(self.revert_projs, classes, xs, strict=True)
        ]
        return xs[VIDEO], xs[SPECIAL]


def _norm_gelu_linear(dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim, EPS), nn.GELU(), nn.Linear(dim, out_dim))


class PatchEmbed(nn.Module):
    """Tubelets of pixels to tokens: (B, 3, T, H, W) -> (B, T' * N, C), time-major."""

    def __init__(self, dim: int, tubelet_size: int, patch_size: int):
        super().__init__()
        size = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(IN_CHANNELS, dim, kernel_size=size, stride=size)

    def forward(self, frames: Tensor) -> Tensor:
        return self.proj(frames).flatten(2).transpose(1, 2)


class ClassTokens(nn.Module):
    """The CLS token of each branch: parameters "0" and "1". ``nn.DataParallel`` would hand on a ParameterList empty."""

    def __init__(self, dims: tuple[int, int]):
        super().__init__()
        for branch, dim in enumerate(dims):
            self.register_parameter(str(branch), nn.Parameter(torch.empty(1, 1, dim)))

    def __getitem__(self, branch: int) -> Tensor:
        return getattr(self, str(branch))


class HSTA(Checkpoints):
    """Hierarchical space-time attention for micro-expression recognition (arXiv 2405.03202), plain PyTorch.

    Args:
        config: an ``HSTAConfig``; or give its fields as keywords.
    """

    patch_embed_class, block_class = PatchEmbed, Block

    def __init__(self, config: HSTAConfig | None = None, **fields: Any):
        super().__init__()
        if config is not None and (fields or not isinstance(config, HSTAConfig)):
            raise TypeError(f"HSTA takes an HSTAConfig or its fields as keywords, got {config!r} and {fields!r}")
        self.config = config = config or HSTAConfig.from_dict(fields)
        self.patch_embed: Any = nn.ModuleList(
            self.patch_embed_class(dim, config.tubelet_size, patch)
            for dim, patch in zip(config.embed_dim, config.patch_size, strict=True)
        )
        self.cls_token = ClassTokens(config.embed_dim)
        self._write_positions()
        self.register_load_state_dict_post_hook(_write_positions_after_loading)
        self.pos_drop = nn.Dropout(config.drop_rate)
        rates = [_drop_path_rates(config, branch) for branch in (0, 1)]
        self.blocks: Any = nn.ModuleList(
            self.block_class(config, [rates[0][k], rates[1][k]]) for k in range(len(config.depth))
        )
        self.norm: Any = nn.ModuleList(nn.LayerNorm(dim, EPS) for dim in config.embed_dim)
        self.head_drop = nn.Dropout(config.head_drop_rate)
        self.head = nn.Linear(config.head_width, config.num_classes)
        self.apply(_init_weights)

    def forward(self, video: Tensor, special: Tensor) -> Tensor:
        """Logits (B, num_classes) of clips.

        Args:
            video: (B, 3, num_frames, image_size, image_size), floating point.
            special: (B, 3, 2, image_size, image_size): the onset and apex frames, or two optical-flow images.

        Raises:
            ValueError, TypeError: shapes or types other than these; the message names the input. With num_frames=2 both
                inputs have one shape: nobody notices an exchange then, unless they are passed by name.
        """
        self.check_inputs(video, special)
        special, video = self.embed(SPECIAL, special), self.embed(VIDEO, video)
        for block in self.blocks:
            video, special = block(video, special)
        special, video = self.normalize(self.norm[SPECIAL], special), self.normalize(self.norm[VIDEO], video)
        return self.classify(video, special)

    def embed(self, branch: int, frames: Tensor) -> Tensor:
        """CLS and patch tokens of a branch with their positions: (B, 1 + T' * N, C)."""
        cls = self.cls_token[branch].expand(frames.shape[0], -1, -1)
        x = torch.cat([cls, self.patch_embed[branch](frames)], dim=1)
        return self.pos_drop(x + self.get_buffer(f"position_{branch}"))

    def normalize(self, norm: nn.Module, x: Tensor) -> Tensor:
        """The last norm of a branch's tokens."""
        return norm(x)

    def classify(self, video: Tensor, special: Tensor) -> Tensor:
        """Logits from the normalized tokens of both branches; the head's weights have those of the special first."""
        xs = special, video
        if self.config.head == "mean":
            features = [x.mean(dim=1) for x in xs]
        else:
            features = [x[:, 0] for x in xs]
            if self.config.head == "cls_last":
                features += [x[:, -1] for x in xs]
        return self.head(self.head_drop(torch.cat(features, dim=-1)))

    def _write_positions(self) -> None:
        """Writes the position tables, which no checkpoint holds, in the type and on the device of the CLS tokens."""
        for branch, (grid, known) in enumerate(zip(self.config.grids, self.config.position_grids, strict=True)):
            name, like = f"position_{branch}", self.cls_token[branch]
            size = NUM_PREFIX_TOKENS + math.prod(grid), self.config.embed_dim[branch]
            buffer = self._buffers.get(name)
            if buffer is None or buffer.is_meta:
                buffer = torch.empty(size, dtype=like.dtype, device=like.device)
                self.register_buffer(name, buffer, persistent=False)
            if not buffer.is_meta:
                buffer.copy_(position_table(grid, known, size[1]))  # in place: it may be shared memory

    def _apply(self, fn: Any, recurse: bool = True) -> HSTA:
        """What moves or converts a model leaves its tables rounded twice, or unwritten after ``to_empty``."""
        super()._apply(fn, recurse)
        self._write_positions()
        return self

    def check_inputs(self, video: Tensor, special: Tensor) -> None:
        size = self.config.image_size
        for name, branch, x in (("video", VIDEO, video), ("special", SPECIAL, special)):
            frames = self.config.frames[branch]
            if not isinstance(x, Tensor) or not x.is_floating_point():
                raise TypeError(f"{name} must be a floating-point tensor, got {getattr(x, 'dtype', type(x))}")
            if x.ndim != 5 or x.shape[1:] != (IN_CHANNELS, frames, size, size):
                expected = f"(B, {IN_CHANNELS}, {frames}, {size}, {size})"
                raise ValueError(f"{name} must have shape {expected}, got {tuple(x.shape)}")
        if video.shape[0] != special.shape[0]:
            got = f"{video.shape[0]} and {special.shape[0]}"
            raise ValueError(f"video and special must hold the same number of clips, got {got}")


def _write_positions_after_loading(model: HSTA, incompatible_keys: Any) -> None:
    """A model on the meta device gets its parameters with ``load_state_dict(assign=True)``, and its tables here."""
    model._write_positions()


def _drop_path_rates(config: HSTAConfig, branch: int) -> list[list[float]]:
    """For each block the rates of a branch's layers, rising linearly from 0 to ``drop_path_rate``."""
    ends = [0]
    for layers in config.depth:
        ends.append(ends[-1] + layers[branch])
    rates = [config.drop_path_rate * layer / max(ends[-1] - 1, 1) for layer in range(ends[-1])]
    return [rates[start:end] for start, end in pairwise(ends)]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ClassTokens):
        for parameter in module.parameters():
            nn.init.trunc_normal_(parameter, std=0.02)


__getattr__ = former_names(__name__, {"Fusion": CrossModalAttention})

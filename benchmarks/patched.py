"""Other people's video transformers, and a ViT on frames: patched, against each of their own settings and compiled.

Sizes are base, weights random. They are measured where ``--only`` names them: a full run is about our own model.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import hsta_kernels
from benchmarks import memory
from benchmarks.case import Case, Work, dtypes
from benchmarks.model import agrees

PIXELS = 224


def timesformer(frames: int, **settings: Any) -> nn.Module:
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    return TimesformerForVideoClassification(TimesformerConfig(num_frames=frames, **settings))


def vivit(frames: int, **settings: Any) -> nn.Module:
    from transformers import VivitConfig, VivitForVideoClassification

    return VivitForVideoClassification(VivitConfig(num_frames=frames, **settings))


def videomae(frames: int, **settings: Any) -> nn.Module:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    return VideoMAEForVideoClassification(VideoMAEConfig(num_frames=frames, **settings))


def vjepa2(frames: int, **settings: Any) -> nn.Module:
    from transformers import VJEPA2Config, VJEPA2ForVideoClassification

    sizes = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12}  # by default they are large
    return VJEPA2ForVideoClassification(VJEPA2Config(crop_size=PIXELS, frames_per_clip=frames, **sizes | settings))


class OfFrames(nn.Module):
    """A ViT on each frame, called as models of video are."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.vit(pixel_values.flatten(0, 1)))


def vit(frames: int, **settings: Any) -> nn.Module:
    import timm

    return OfFrames(timm.create_model("vit_base_patch16_224", **settings))


# A model, its own settings of attention, and whose it is; those come first of which more than attention is replaced.
MODELS: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...], str]] = {
    "timesformer": (timesformer, ("eager",), "transformers"),
    "vjepa2": (vjepa2, ("eager", "sdpa"), "transformers"),
    "vivit": (vivit, ("eager", "sdpa"), "transformers"),
    "videomae": (videomae, ("eager", "sdpa"), "transformers"),
    "vit": (vit, ("eager", "sdpa"), "timm"),
}


def build(name: str, frames: int, device: torch.device, **settings: Any) -> tuple[nn.Module, torch.Tensor]:
    """A model as its library makes it, and a clip."""
    torch.manual_seed(0)
    model = MODELS[name][0](frames, **settings).to(device)
    return model, torch.randn(1, frames, 3, PIXELS, PIXELS, device=device)


def with_attention(model: nn.Module, implementation: str) -> nn.Module:
    model = copy.deepcopy(model)
    if isinstance(model, OfFrames):
        for block in model.vit.blocks:
            block.attn.fused_attn = implementation == "sdpa"
    else:
        model.config._attn_implementation = implementation
    return model


def training_step(model: nn.Module, clip: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Forward and backward pass; returns the gradient of the first parameter, which depends on every layer."""
    model.zero_grad()
    with torch.autocast(clip.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = model(clip).logits.float().square().mean()
    loss.backward()
    return next(model.parameters()).grad


def inference_step(model: nn.Module, clip: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    with torch.no_grad(), torch.autocast(clip.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(clip).logits.float()


def case(name: str, frames: int, training: bool, dtype: torch.dtype, device: torch.device) -> Case:
    model, clip = build(name, frames, device)
    model.train(training)
    patched = copy.deepcopy(model)
    hsta_kernels.patch(patched)
    step = training_step if training else inference_step
    others: dict[str, Callable[[], object]] = {}
    for implementation in MODELS[name][1]:
        own = with_attention(model, implementation)
        others[implementation] = partial(step, own, clip, dtype)
        others[f"compiled {implementation}"] = partial(step, torch.compile(own, dynamic=False), clip, dtype)

    def peaks() -> float:
        common = (name, frames, str(dtype).removeprefix("torch."), device)
        ours, theirs = (memory.of_step(__name__, who, *common) for who in ("ours", rival))
        return ours / theirs

    rival = MODELS[name][1][-1]
    notes = {f"peak memory over {rival}'s": peaks} if training and memory.measurable(device) else {}
    work = f"{name} T={frames} {'training step' if training else 'inference'} B=1"
    return Case(
        "patched", work, dtype, device, partial(step, patched, clip, dtype), others,
        check=partial(agrees, dtype=dtype), notes=notes,
    )  # fmt: skip


def step_of(who: str, name: str, frames: str, dtype: str, device: str) -> Callable[[], object]:
    """A training step of a model, patched or with another attention of its own, for benchmarks/memory.py."""
    model, clip = build(name, int(frames), torch.device(device))
    if who == "ours":
        hsta_kernels.patch(model.train())
    else:
        model = with_attention(model, who).train()
    return partial(training_step, model, clip, getattr(torch, dtype))


def works(device: torch.device, quick: bool) -> Iterator[Work]:
    installed = [name for name, (_, _, library) in MODELS.items() if importlib.util.find_spec(library)]
    for frames in (16, 32, 8):  # all models at 16 frames first: whoever stops a long run has something of each
        for short, dtype in dtypes(quick).items():
            for name in installed:
                for training in (False, True):
                    title = f"patched-{name}-T{frames}-{'training' if training else 'inference'}-{short}"
                    yield Work(title, partial(case, name, frames, training, dtype, device), 4, on_request=True)

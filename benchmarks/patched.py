"""Other people's video transformers, a ViT on frames, and temporal blocks of diffusion models: patched, as it is and
compiled, against each of their own settings, as it is and compiled.

Sizes are base, of diffusion models those of a film of 256 px, weights random. They are measured where ``--only`` names
them: a full run is about our own model.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn

import hsta_kernels
from benchmarks import memory
from benchmarks.case import Case, Work, dtypes
from benchmarks.model import agrees

PIXELS = 224
CHANNELS, SIDE = 320, 32  # of the first block of a UNet


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


class OfLatents(nn.Module):
    """A module of a diffusion model, called as models of video are; with it what else it is called with."""

    def __init__(self, module: nn.Module, tensors: dict[str, torch.Tensor], **more: int) -> None:
        super().__init__()
        self.module, self.names, self.more = module, tuple(tensors), more
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, latents: torch.Tensor) -> SimpleNamespace:
        out = self.module(latents, **{name: getattr(self, name) for name in self.names}, **self.more)
        return SimpleNamespace(logits=out if isinstance(out, torch.Tensor) else out.sample)


def animatediff(frames: int) -> nn.Module:
    """A motion module."""
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    block = AnimateDiffTransformer3D(
        num_attention_heads=8, attention_head_dim=CHANNELS // 8, in_channels=CHANNELS,
        positional_embeddings="sinusoidal", num_positional_embeddings=32,
    )  # fmt: skip
    return OfLatents(block, {}, num_frames=frames)


def svd(frames: int) -> nn.Module:
    """The block over time of a pair: that over space is left as it is."""
    from diffusers.models.attention import TemporalBasicTransformerBlock

    block = TemporalBasicTransformerBlock(CHANNELS, CHANNELS, CHANNELS // 64, 64, cross_attention_dim=1024)
    return OfLatents(block, {"encoder_hidden_states": torch.randn(SIDE**2, 1, 1024)}, num_frames=frames)


def latte(frames: int) -> nn.Module:
    """XL/2 with two blocks over space and two over time of 28."""
    from diffusers import LatteTransformer3DModel

    model = LatteTransformer3DModel(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=2, sample_size=SIDE,
        patch_size=2, cross_attention_dim=1152, caption_channels=4096, activation_fn="gelu-approximate",
        norm_type="ada_norm_single", video_length=frames, attention_bias=True, norm_elementwise_affine=False,
    )  # fmt: skip
    return OfLatents(model, {"timestep": torch.tensor([3]), "encoder_hidden_states": torch.randn(1, 8, 4096)})


def clip(frames: int) -> tuple[int, ...]:
    return 1, frames, 3, PIXELS, PIXELS


class Model(NamedTuple):
    """How its library makes it, its own settings of attention, the fastest first, and the shape of its input."""

    make: Callable[..., nn.Module]
    attentions: tuple[str, ...]
    library: str
    shape: Callable[[int], tuple[int, ...]] = clip


# Those come first of which more than attention is replaced.
MODELS = {
    "timesformer": Model(timesformer, ("eager",), "transformers"),
    "vjepa2": Model(vjepa2, ("sdpa", "eager"), "transformers"),
    "vivit": Model(vivit, ("sdpa", "eager"), "transformers"),
    "videomae": Model(videomae, ("sdpa", "eager"), "transformers"),
    "vit": Model(vit, ("sdpa", "eager"), "timm"),
    "animatediff": Model(animatediff, ("sdpa", "eager"), "diffusers", lambda frames: (frames, CHANNELS, SIDE, SIDE)),
    "svd": Model(svd, ("sdpa", "eager"), "diffusers", lambda frames: (frames, SIDE**2, CHANNELS)),
    "latte": Model(latte, ("sdpa", "eager"), "diffusers", lambda frames: (1, 4, frames, SIDE, SIDE)),
}


def build(name: str, frames: int, device: torch.device, **settings: Any) -> tuple[nn.Module, torch.Tensor]:
    """A model as its library makes it, and its input."""
    torch.manual_seed(0)
    model = MODELS[name].make(frames, **settings).to(device)
    return model, torch.randn(MODELS[name].shape(frames), device=device)


def with_attention(model: nn.Module, implementation: str) -> nn.Module:
    model = copy.deepcopy(model)
    if isinstance(model, OfFrames):
        for block in model.vit.blocks:
            block.attn.fused_attn = implementation == "sdpa"
    elif isinstance(model, OfLatents):
        from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

        for module in model.modules():
            if isinstance(module, Attention):
                module.set_processor(AttnProcessor2_0() if implementation == "sdpa" else AttnProcessor())
    else:
        model.config._attn_implementation = implementation
    return model


def training_step(model: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Forward and backward pass; returns the gradient of the first parameter, which depends on every layer."""
    model.zero_grad()
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = model(x).logits.float().square().mean()
    loss.backward()
    return next(model.parameters()).grad


def inference_step(model: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    with torch.no_grad(), torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(x).logits.float()


def case(name: str, frames: int, training: bool, dtype: torch.dtype, device: torch.device) -> Case:
    model, x = build(name, frames, device)
    model.train(training)
    patched = copy.deepcopy(model)
    hsta_kernels.patch(patched)
    step = training_step if training else inference_step
    compiled = partial(step, torch.compile(patched, dynamic=False), x, dtype)
    others: dict[str, Callable[[], object]] = {}
    for implementation in MODELS[name].attentions:
        own = with_attention(model, implementation)
        others[implementation] = partial(step, own, x, dtype)
        others[f"compiled {implementation}"] = partial(step, torch.compile(own, dynamic=False), x, dtype)

    def peaks() -> float:
        common = (name, frames, str(dtype).removeprefix("torch."), device)
        ours, theirs = (memory.of_step(__name__, who, *common) for who in ("ours", rival))
        return ours / theirs

    rival = MODELS[name].attentions[0]
    notes = {f"peak memory over {rival}'s": peaks} if training and memory.measurable(device) else {}
    work = f"{name} T={frames} {'training step' if training else 'inference'} B=1"
    return Case(
        "patched", work, dtype, device, partial(step, patched, x, dtype), others,
        {"compiled": compiled}, check=partial(agrees, dtype=dtype), notes=notes,
    )  # fmt: skip


def step_of(who: str, name: str, frames: str, dtype: str, device: str) -> Callable[[], object]:
    """A training step of a model, patched or with another attention of its own, for benchmarks/memory.py."""
    model, x = build(name, int(frames), torch.device(device))
    if who == "ours":
        hsta_kernels.patch(model.train())
    else:
        model = with_attention(model, who).train()
    return partial(training_step, model, x, getattr(torch, dtype))


def works(device: torch.device, quick: bool) -> Iterator[Work]:
    installed = [name for name, model in MODELS.items() if importlib.util.find_spec(model.library)]
    for frames in (16, 32, 8):  # all models at 16 frames first: whoever stops a long run has something of each
        for short, dtype in dtypes(quick).items():
            for name in installed:
                for training in (False, True):
                    title = f"patched-{name}-T{frames}-{'training' if training else 'inference'}-{short}"
                    yield Work(title, partial(case, name, frames, training, dtype, device), 4, on_request=True)

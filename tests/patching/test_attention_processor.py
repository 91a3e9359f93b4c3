"""Temporal blocks of diffusers, patched: the results of the original."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import hsta_kernels
from hsta_kernels.ops.space_time_attention import autograd
from tests.patching.patched import trained
from tests.tolerances import assert_close_to_reference

pytest.importorskip("diffusers", reason="diffusers is not installed; `make test` installs it")

FRAMES, POSITIONS, DIM = 5, 6, 32


def stable_video_diffusion() -> tuple[nn.Module, tuple, dict]:
    from diffusers.models.attention import TemporalBasicTransformerBlock

    block = TemporalBasicTransformerBlock(DIM, DIM, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=8)
    return block, (2 * FRAMES, POSITIONS, DIM), {"num_frames": FRAMES, "encoder_hidden_states": 2 * POSITIONS}


def animate_diff() -> tuple[nn.Module, tuple, dict]:
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    block = AnimateDiffTransformer3D(
        num_attention_heads=2, attention_head_dim=16, in_channels=DIM, norm_num_groups=4,
        double_self_attention=True, positional_embeddings="sinusoidal", num_positional_embeddings=32,
    )  # fmt: skip
    return block, (2 * FRAMES, DIM, 2, 3), {"num_frames": FRAMES}


def latte() -> tuple[nn.Module, tuple, dict]:
    from diffusers import LatteTransformer3DModel

    model = LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2, sample_size=4,
        patch_size=2, cross_attention_dim=32, caption_channels=8, activation_fn="gelu-approximate",
        norm_type="ada_norm_single", video_length=FRAMES, attention_bias=True,
    )  # fmt: skip
    return model, (1, 4, FRAMES, 4, 4), {"timestep": torch.tensor([3]), "encoder_hidden_states": torch.randn(1, 3, 8)}


@pytest.fixture(params=[stable_video_diffusion, animate_diff, latte], ids=lambda make: make.__name__)
def block(request) -> tuple[nn.Module, torch.Tensor, dict]:
    torch.manual_seed(0)
    model, shape, more = request.param()
    if isinstance(rows := more.get("encoder_hidden_states"), int):
        more["encoder_hidden_states"] = torch.randn(rows, 3, 8)
    return trained(model), torch.randn(shape), more


def results(model: nn.Module, x: torch.Tensor, more: dict, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(model).to(dtype)
    x = x.detach().to(dtype, copy=True).requires_grad_()
    floating = {key: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for key, v in more.items()}
    out = model(x, **floating)
    out = out if isinstance(out, torch.Tensor) else out.sample
    out.square().sum().backward()
    return {"out": out.detach(), "grad": x.grad}


def test_results_and_gradients_are_those_of_the_original(block, monkeypatch):
    model, x, more = block
    same, exact = results(model, x, more, torch.float32), results(model, x, more, torch.float64)
    report = hsta_kernels.patch(model)
    assert report.replaced and all("attn" in name for name in report.replaced)
    calls, apply = [], autograd.SpaceTimeAttention.apply
    monkeypatch.setattr(autograd.SpaceTimeAttention, "apply", lambda *a: (calls.append(a[0]), apply(*a))[1])
    ours = results(model, x, more, torch.float32)
    assert len(calls) == len(report.replaced) and all(grid.num_frames == FRAMES for grid in calls)
    for name in ours:
        assert_close_to_reference(ours[name], same[name], exact[name], name)
    again = hsta_kernels.patch(model)
    assert again.replaced == report.replaced
    hsta_kernels.unpatch(model)
    before = len(calls)
    results(model, x, more, torch.float32)
    assert len(calls) == before


def test_attention_to_the_prompt_and_other_processors_are_left_and_said():
    from diffusers.models.attention_processor import AttnProcessor

    model, _, _ = stable_video_diffusion()
    report = hsta_kernels.patch(model)
    assert report.replaced == ["attn1"] and "to the prompt" in report.left["attn2"]
    hsta_kernels.unpatch(model)
    model.attn1.set_processor(AttnProcessor())
    assert "its processor is AttnProcessor" in hsta_kernels.patch(model).left["attn1"]
    assert isinstance(model.attn1.processor, AttnProcessor)


def test_through_the_compiler_in_one_graph(block):
    model, x, more = block
    hsta_kernels.patch(model)
    with torch.no_grad():
        expected = model(x, **more)
        compiled = torch.compile(model, backend="aot_eager")(x, **more)
    torch.testing.assert_close(getattr(compiled, "sample", compiled), getattr(expected, "sample", expected))

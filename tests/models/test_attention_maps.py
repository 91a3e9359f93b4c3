from __future__ import annotations

import pytest
import torch

from hsta_kernels import HSTA, cls_attention, reference
from tests.models.parity import make_inputs, same_model, small_config, trained_reference


def naive_maps(model: reference.HSTA, video: torch.Tensor, special: torch.Tensor) -> dict[str, torch.Tensor]:
    """Probabilities (B, H, L) of CLS in the last layers, head by head, from the inputs of the last attention."""
    video, special = model.embed(1, video), model.embed(0, special)
    for block in model.blocks[:-1]:
        video, special = block(video, special)
    maps = {}
    for name, branch, x in (("video", 1, video), ("special", 0, special)):
        *layers, last = model.blocks[-1].blocks[branch]
        for layer in layers:
            x = layer(x)
        if last.has_time:
            x = x + last.attn_time(last.norm_time(x), last.grid, "time")
        x = last.norm1(x)
        w_q, w_k, _ = last.attn.qkv.weight.chunk(3)
        q, k = x[:, 0] @ w_q.T + last.attn.q_bias, x @ w_k.T
        heads = [
            torch.stack([(k_b @ q_b / q_b.numel() ** 0.5).softmax(0) for q_b, k_b in zip(q_h, k_h, strict=True)])
            for q_h, k_h in zip(q.chunk(3, dim=-1), k.chunk(3, dim=-1), strict=True)
        ]
        maps[name] = torch.stack(heads, dim=1)
    return maps


@pytest.mark.parametrize("kind", [HSTA, reference.HSTA])
@pytest.mark.parametrize("attention", ["divided", "joint"])
def test_maps(kind, attention):
    config = small_config(attention=attention, drop_rate=0.2, drop_path_rate=0.2)
    model = trained_reference(config).eval()
    inputs = make_inputs(config)
    expected = naive_maps(model, *inputs)
    maps = cls_attention(same_model(kind, model).train(), *inputs)
    assert list(maps) == ["video", "special"]
    for name, grid in (("video", (3, 3, 3)), ("special", (1, 4, 4))):
        got, probabilities = maps[name], expected[name]
        assert got.shape == (2, 3, *grid)
        torch.testing.assert_close(got.flatten(2), probabilities[:, :, 1:], rtol=1e-4, atol=1e-6)
        own_share = probabilities[:, :, 0]
        assert (own_share > 0).all()
        torch.testing.assert_close(got.sum((2, 3, 4)) + own_share, torch.ones(2, 3))


def test_maps_leave_the_model_as_it_was():
    config = small_config(drop_rate=0.2)
    model = HSTA(config).train()
    random_state = torch.get_rng_state()
    maps = cls_attention(model, *make_inputs(config, batch=1))
    assert model.training and model.blocks[-1].training
    assert not any(weights.requires_grad for weights in maps.values())
    assert not any(attn._forward_pre_hooks for attn in model.modules())
    torch.set_rng_state(random_state)


def test_maps_are_float32_for_any_model():
    config = small_config()
    model = HSTA(config).bfloat16()
    maps = cls_attention(model, *make_inputs(config, dtype=torch.bfloat16))
    assert [weights.dtype for weights in maps.values()] == [torch.float32] * 2


def test_wrong_inputs_leave_no_hooks():
    config = small_config()
    model = HSTA(config)
    with pytest.raises(ValueError, match="video must have shape"):
        cls_attention(model, *reversed(make_inputs(config)))
    assert not any(attn._forward_pre_hooks for attn in model.modules())

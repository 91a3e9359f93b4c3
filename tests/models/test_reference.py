"""The reference model against what it is meant to be: names, counts, and loops that are too simple to be wrong."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hsta_kernels import HSTA, HSTAConfig, reference
from hsta_kernels.models.reference import position_table, sinusoid_table
from tests.models.parity import make_inputs, small_config, trained_reference


@pytest.mark.parametrize(
    "depth, count", [(((1, 2),) * 4, 81_887_623), (((1, 4),) * 3, 104_319_367)], ids=["4x(1,2)", "3x(1,4)"]
)
def test_parameter_counts_of_the_published_models(depth, count):
    with torch.device("meta"):
        model = reference.HSTA(attention="joint", depth=depth)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_parameter_names():
    """Names and shapes of the authors' state dict, written out for one block."""
    c, hidden, patch = (24, 48), (48, 144), (12, 16)
    linear = {"weight", "bias"}
    expected = {f"cls_token.{b}": (1, 1, c[b]) for b in (0, 1)}
    for b in (0, 1):
        expected |= {f"patch_embed.{b}.proj.weight": (c[b], 3, 2, patch[b], patch[b])}
        expected |= {f"{name}.{p}": (c[b],) for name in (f"norm.{b}",) for p in linear}
        expected |= {f"patch_embed.{b}.proj.bias": (c[b],)}
        for layer in range((1, 2)[b]):
            prefix = f"blocks.0.blocks.{b}.{layer}"
            expected |= {f"{prefix}.{norm}.{p}": (c[b],) for norm in ("norm1", "norm2") for p in linear}
            expected |= {f"{prefix}.attn.{bias}": (c[b],) for bias in ("q_bias", "v_bias", "proj.bias")}
            expected |= {f"{prefix}.attn.qkv.weight": (3 * c[b], c[b]), f"{prefix}.attn.proj.weight": (c[b], c[b])}
            expected |= {f"{prefix}.mlp.fc1.weight": (hidden[b], c[b]), f"{prefix}.mlp.fc1.bias": (hidden[b],)}
            expected |= {f"{prefix}.mlp.fc2.weight": (c[b], hidden[b]), f"{prefix}.mlp.fc2.bias": (c[b],)}
        other = 1 - b
        for module, here, there in (("projs", b, other), ("revert_projs", other, b)):
            expected |= {f"blocks.0.{module}.{b}.0.{p}": (c[here],) for p in linear}
            expected |= {f"blocks.0.{module}.{b}.2.weight": (c[there], c[here])}
            expected |= {f"blocks.0.{module}.{b}.2.bias": (c[there],)}
        fusion = f"blocks.0.fusion.{b}"
        expected |= {f"{fusion}.norm1.{p}": (c[other],) for p in linear}
        for name in ("wq", "wk", "wv", "proj"):
            expected |= {f"{fusion}.attn.{name}.weight": (c[other],) * 2, f"{fusion}.attn.{name}.bias": (c[other],)}
    expected |= {"head.weight": (5, 72), "head.bias": (5,)}
    model = reference.HSTA(small_config(attention="joint", depth=((1, 2),)))
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected


def test_divided_attention_adds_time_where_there_is_time():
    config = small_config(depth=((1, 2),))
    names = reference.HSTA(config).state_dict().keys()
    joint_names = reference.HSTA(small_config(depth=((1, 2),), attention="joint")).state_dict().keys()
    added = {name.removeprefix("blocks.0.blocks.") for name in names - joint_names}
    per_layer = {"norm_time.weight", "norm_time.bias"}
    per_layer |= {f"attn_time.{p}" for p in ("q_bias", "v_bias", "qkv.weight", "proj.weight", "proj.bias")}
    assert added == {f"1.{layer}.{name}" for layer in (0, 1) for name in per_layer}


def loop_attention(attn: reference.Attention, x: torch.Tensor, frames: int, places: int, axis: str) -> torch.Tensor:
    """Self-attention by asking for each pair of tokens whether one sees the other."""

    def sees(query: int, key: int) -> bool:
        if query == 0 or key == 0 or axis == "joint":
            return True
        query_time, query_place = divmod(query - 1, places)
        key_time, key_place = divmod(key - 1, places)
        return query_place == key_place if axis == "time" else query_time == key_time

    batch, length, width = x.shape
    size = width // attn.num_heads
    out = torch.zeros_like(x)
    w_q, w_k, w_v = attn.qkv.weight.split(width)
    for b in range(batch):
        for head in range(attn.num_heads):
            rows = slice(head * size, (head + 1) * size)
            for i in range(length):
                q = w_q[rows] @ x[b, i] + attn.q_bias[rows]
                visible = [j for j in range(length) if sees(i, j)]
                weights = torch.stack([torch.exp(q @ (w_k[rows] @ x[b, j]) / math.sqrt(size)) for j in visible])
                values = torch.stack([w_v[rows] @ x[b, j] + attn.v_bias[rows] for j in visible])
                out[b, i, rows] = (weights / weights.sum()) @ values
    return F.linear(out, attn.proj.weight, attn.proj.bias)


@pytest.mark.parametrize("frames, places", [(3, 4), (1, 5), (4, 1)])
@pytest.mark.parametrize("axis", ["time", "space", "joint"])
def test_who_sees_whom(axis, frames, places):
    attn = reference.Attention(dim=12, num_heads=3, drop=0.0, attn_drop=0.0).double()
    with torch.no_grad():
        for parameter in attn.parameters():
            parameter.normal_()
        x = torch.randn(2, 1 + frames * places, 12, dtype=torch.float64)
        torch.testing.assert_close(attn(x, (frames, places), axis), loop_attention(attn, x, frames, places, axis))


@torch.no_grad()
def test_cross_modal_attention():
    """One direction, head by head, with the query and everything it reads in one sequence."""
    module = reference.CrossModalAttention(small_config(), branch=1, drop_path=0.0).double()
    for parameter in module.parameters():
        parameter.normal_()
    attn = module.attn
    cls, patches = torch.randn(2, 48, dtype=torch.float64), torch.randn(2, 7, 48, dtype=torch.float64)
    for b in range(2):
        tokens = torch.stack([cls[b], *patches[b]])
        y = (tokens - tokens.mean(1, keepdim=True)) / (tokens.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
        y = y * module.norm1.weight + module.norm1.bias
        heads = []
        for head in range(3):
            rows = slice(16 * head, 16 * head + 16)
            q = attn.wq.weight[rows] @ y[0] + attn.wq.bias[rows]
            k = y @ attn.wk.weight[rows].T + attn.wk.bias[rows]
            v = y @ attn.wv.weight[rows].T + attn.wv.bias[rows]
            heads.append((k @ q / 4).softmax(dim=0) @ v)
        expected = cls[b] + attn.proj.weight @ torch.cat(heads) + attn.proj.bias
        torch.testing.assert_close(module(cls, patches)[b], expected)


@torch.no_grad()
def test_cross_modal_attention_replaces_cls_and_both_directions_read_the_same():
    config = small_config(depth=((1, 1),))
    block = trained_reference(config).blocks[0]
    xs = [torch.randn(2, 17, 24), torch.randn(2, 28, 48)]
    outputs = block(video=xs[1], special=xs[0])[::-1]
    stacks = [layers(x) for layers, x in zip(block.blocks, xs, strict=True)]
    for i in (0, 1):
        cls = block.fusion[i](block.projs[i](stacks[i][:, 0]), stacks[1 - i][:, 1:])
        torch.testing.assert_close(outputs[i][:, 0], block.revert_projs[i](cls))
        assert torch.equal(outputs[i][:, 1:], stacks[i][:, 1:])


@torch.no_grad()
def test_tokens_are_time_major_and_the_border_is_dropped():
    config = small_config()
    model = trained_reference(config)
    video, _ = make_inputs(config)
    x = model.embed(1, video)
    assert x.shape == (2, 1 + 3 * 3 * 3, 48)
    time, row, column = 2, 1, 2
    tubelet = video[:, :, 4:6, 16:32, 32:48]
    token = 1 + (time * 3 + row) * 3 + column
    proj = model.patch_embed[1].proj
    expected = (tubelet[:, None] * proj.weight).sum((2, 3, 4, 5)) + proj.bias + model.position_1[token]
    torch.testing.assert_close(x[:, token], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x[:, 0], (model.cls_token[1][0] + model.position_1[0]).expand(2, -1))


def test_position_table():
    table = reference.sinusoid_table(5, 6)
    for position in range(5):
        for j in range(6):
            angle = position / 10000 ** (2 * (j // 2) / 6)
            expected = math.sin(angle) if j % 2 == 0 else math.cos(angle)
            assert table[position, j].item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("head, width", [("cls", 72), ("cls_last", 144), ("mean", 72)])
def test_heads(head, width):
    model = reference.HSTA(small_config(head=head))
    assert model.head.in_features == width
    seen = []
    model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    xs = [torch.randn(2, 17, 24), torch.randn(2, 28, 48)]
    model.classify(video=xs[1], special=xs[0])
    a, b = xs
    expected = {"cls": [a[:, 0], b[:, 0]], "cls_last": [a[:, 0], b[:, 0], a[:, -1], b[:, -1]]}
    expected["mean"] = [a.mean(1), b.mean(1)]
    assert torch.equal(seen[0], torch.cat(expected[head], dim=1))


def test_drop_path_rates_rise_linearly():
    model = reference.HSTA(small_config(depth=((1, 2), (2, 1)), drop_path_rate=0.2))
    rates = [[layer.drop_path.rate for block in model.blocks for layer in block.blocks[b]] for b in (0, 1)]
    assert rates == [pytest.approx([0.0, 0.1, 0.2])] * 2
    assert [direction.drop_path.rate for direction in model.blocks[0].fusion] == pytest.approx([0.0, 0.1])
    assert [direction.drop_path.rate for direction in model.blocks[1].fusion] == pytest.approx([0.2, 0.2])


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop_path = reference.DropPath(0.25)
    y = drop_path(torch.ones(4000, 2, 3))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop_path.eval()(y), y)


@pytest.mark.parametrize("kind", [HSTA, reference.HSTA])
def test_rates_of_zero_draw_no_random_numbers(kind):
    model = kind(small_config()).train()
    inputs = make_inputs(model.config)
    before = torch.get_rng_state()
    model(*inputs)
    assert torch.equal(torch.get_rng_state(), before)


def test_attention_dropout_is_drawn_in_training_only():
    model = trained_reference(small_config(attn_drop_rate=0.5))
    inputs = make_inputs(model.config)
    assert not torch.equal(model(*inputs), model(*inputs))
    assert torch.equal(model.eval()(*inputs), model(*inputs))


def test_initial_weights():
    model = reference.HSTA(small_config(embed_dim=(96, 192), num_heads=(3, 3)))
    assert model.blocks[0].blocks[1][0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.cls_token[1].std().item() == pytest.approx(0.02, rel=0.3)
    assert not model.head.bias.any()
    assert (model.norm[0].weight == 1).all() and not model.norm[0].bias.any()


def test_position_tables_are_not_in_the_state_dict():
    assert not [name for name in reference.HSTA(small_config()).state_dict() if "position" in name]


@pytest.mark.parametrize("kind", [HSTA, reference.HSTA])
def test_wrong_inputs_are_refused_by_name(kind):
    model = kind(small_config())
    video, special = make_inputs(model.config)
    with pytest.raises(ValueError, match=r"video must have shape \(B, 3, 6, 50, 50\), got \(2, 3, 4, 50, 50\)"):
        model(video[:, :, :4], special)
    with pytest.raises(ValueError, match=r"special must have shape .* got \(2, 3, 2, 50\)"):
        model(video, special[..., 0])
    with pytest.raises(ValueError, match="same number of clips, got 2 and 1"):
        model(video, special[:1])
    with pytest.raises(TypeError, match=r"video must be a floating-point tensor, got torch\.uint8"):
        model(video.byte(), special)


def test_a_model_is_made_of_a_config_or_of_fields():
    config = small_config()
    assert reference.HSTA(**config.to_dict()).config == config
    with pytest.raises(TypeError, match="HSTAConfig or its fields"):
        reference.HSTA(config, num_classes=3)
    with pytest.raises(TypeError, match="HSTAConfig or its fields"):
        HSTA({"num_classes": 3})
    with pytest.raises(ValueError, match="'classes' is not a field"):
        HSTA(classes=3)
    assert reference.HSTA(small_config()).config == HSTAConfig(**small_config().to_dict())


def test_positions_are_stretched_over_another_grid():
    """Between two known positions is their weighted mean; CLS and channels stay; the same grid is as it was."""
    table = sinusoid_table(1 + 2 * 3 * 3, 8)
    known = table[1:].view(2, 3, 3, 8)
    stretched = position_table((4, 9, 9), (2, 3, 3), 8)
    assert torch.equal(stretched[0], table[0])
    grid = stretched[1:].view(4, 9, 9, 8)
    # Each known position is the middle of three in height and width; in time two lie a quarter to either side.
    torch.testing.assert_close(grid[0, 1::3, 1::3], known[0])
    torch.testing.assert_close(grid[1, 1::3, 1::3], 0.75 * known[0] + 0.25 * known[1])
    assert torch.equal(position_table((2, 3, 3), (2, 3, 3), 8), table)


@pytest.mark.parametrize("cls", [HSTA, reference.HSTA])
def test_weights_of_other_frames_and_sides_keep_their_positions(cls, tmp_path):
    sizes = {"embed_dim": (8, 8), "num_heads": (2, 2), "patch_size": (4, 4), "depth": ((1, 1),), "num_classes": 2}
    known = HSTAConfig(image_size=8, num_frames=4, **sizes)
    model = cls(HSTAConfig(image_size=16, num_frames=8, position_size=(4, 8), **sizes))
    expected = position_table((4, 4, 4), (2, 2, 2), 8).float()
    assert torch.equal(model.get_buffer("position_1"), expected)
    model.load_state_dict(cls(known).state_dict())
    assert torch.equal(model.get_buffer("position_1"), expected)
    model.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(again.get_buffer("position_1"), expected)
    with pytest.raises(ValueError, match="position_size must be None, or frames"):
        HSTAConfig(position_size=(3, 224))

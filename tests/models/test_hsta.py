"""The fused model against the reference model."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import hsta_kernels
from hsta_kernels import HSTA, backends, reference
from hsta_kernels.ops import bias_gelu, cross_modal_attention, fused_linear, space_time_attention
from tests.models.parity import assert_parity, make_inputs, same_model, small_config, trained_reference

DROPS = {"drop_rate": 0.1, "drop_path_rate": 0.3, "head_drop_rate": 0.2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("num_frames", [2, 6, 16])
@pytest.mark.parametrize("head", ["cls", "cls_last", "mean"])
@pytest.mark.parametrize("attention", ["divided", "joint"])
def test_logits_and_gradients(attention, head, num_frames, dtype):
    config = small_config(attention=attention, head=head, num_frames=num_frames)
    assert_parity(trained_reference(config), dtype=dtype)


@pytest.mark.parametrize("attention", ["divided", "joint"])
def test_autocast(attention):
    assert_parity(trained_reference(small_config(attention=attention)), autocast=torch.bfloat16)


@pytest.mark.parametrize("hooked", [False, True])
def test_inference_in_pieces(hooked, monkeypatch):
    """A large MLP's rows; all at once where a module in it has a hook, which is called once."""
    config = small_config()
    model, inputs, calls, seen = same_model(HSTA, trained_reference(config)).eval(), make_inputs(config), [], []
    whole = hsta_kernels.reference.HSTA(config).eval()
    whole.load_state_dict(model.state_dict())
    plain = reference.MLP.forward
    monkeypatch.setattr(reference.MLP, "forward", lambda mlp, x: (calls.append(len(x)), plain(mlp, x))[1])
    monkeypatch.setattr(fused_linear, "_PIECE", 1000)
    mlp = next(module for module in model.modules() if isinstance(module, reference.MLP))
    if hooked:
        mlp.drop.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        logits = model(*inputs)
        pieces, calls[:] = len(calls), []
        torch.testing.assert_close(logits, whole(*inputs))
    assert pieces > len(calls)  # the reference's are whole
    assert len(seen) == 2 * hooked  # between the layers, and after them


def test_reference_backend():
    with hsta_kernels.backend("reference"):
        assert_parity(trained_reference(small_config()))


def test_special_frames_with_time():
    """With one frame a token the special branch has two moments, and a sub-layer over time."""
    model = trained_reference(small_config(tubelet_size=1, num_frames=3))
    assert model.blocks[0].blocks[0][0].has_time
    assert_parity(model)


@pytest.mark.parametrize("attn_drop_rate", [0.0, 0.2])
@pytest.mark.parametrize("attention", ["divided", "joint"])
def test_training_draws_the_same_random_numbers(attention, attn_drop_rate, monkeypatch):
    """But for the MLP's dropout and attention's, whose masks come from a generator of their own: the reference is given
    these masks."""

    def attend(attention: reference.Attention, qkv: torch.Tensor, grid: tuple[int, int], axis: str) -> torch.Tensor:
        return space_time_attention(qkv, grid, axis, backend="reference", dropout_rate=attention.attn_drop.p)

    def between_branches(fusion: reference.CrossModalAttention, cls: torch.Tensor, patches: torch.Tensor):
        attn = fusion.attn
        weights = [w for layer in (fusion.norm1, attn.wq, attn.wk, attn.wv) for w in (layer.weight, layer.bias)]
        out = cross_modal_attention(
            cls, patches, *weights, attn.num_heads, backend="reference", dropout_rate=attn.attn_drop.p
        )
        return cls + fusion.drop_path(attn.proj_drop(attn.proj(out)))

    def forward(mlp: reference.MLP, x: torch.Tensor) -> torch.Tensor:
        with hsta_kernels.backend("reference"):
            hidden = bias_gelu(F.linear(x, mlp.fc1.weight), mlp.fc1.bias, mlp.drop.p)
        return mlp.drop(mlp.fc2(hidden))

    monkeypatch.setattr(reference.Attention, "attend", attend)
    monkeypatch.setattr(reference.MLP, "forward", forward)
    monkeypatch.setattr(reference.CrossModalAttention, "forward", between_branches)
    config = small_config(attention=attention, attn_drop_rate=attn_drop_rate, **DROPS)
    assert_parity(trained_reference(config).train(), draws=24)


def test_evaluation_drops_nothing():
    config = small_config(attn_drop_rate=0.2, **DROPS)
    model = trained_reference(config).eval()
    assert_parity(model)
    twin = same_model(HSTA, model)
    inputs = make_inputs(config)
    assert torch.equal(twin(*inputs), twin(*inputs))
    twin.train()
    assert not torch.equal(twin(*inputs), twin(*inputs))


@pytest.mark.parametrize("attention", ["divided", "joint"])
def test_compile_without_graph_breaks(attention):
    torch._dynamo.reset()
    config = small_config(attention=attention, depth=((1, 1),), num_frames=4)
    compile = partial(torch.compile, fullgraph=True, backend="aot_eager")
    assert_parity(trained_reference(config), fused=compile)


@pytest.mark.slow  # minutes of C++ compilation
def test_compile_to_machine_code():
    torch._dynamo.reset()
    config = small_config(depth=((1, 1),), num_frames=4)
    assert_parity(trained_reference(config), fused=partial(torch.compile, fullgraph=True))


def test_compile_with_drop_path_and_dropout():
    torch._dynamo.reset()
    config = small_config(depth=((1, 2),), **DROPS)
    model = same_model(HSTA, trained_reference(config).train())
    inputs = make_inputs(config)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    expected = model(*inputs)
    torch.manual_seed(3)
    torch.testing.assert_close(compiled(*inputs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="PyTorch 2.6 fails inside its own dynamo")
@pytest.mark.parametrize("attention", ["divided", "joint"])
def test_export_with_any_batch_size(attention):
    config = small_config(attention=attention)
    model = same_model(HSTA, trained_reference(config).eval())
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        model, make_inputs(config), dynamic_shapes={"video": {0: batch}, "special": {0: batch}}
    ).module()
    for size in (1, 5):
        inputs = make_inputs(config, batch=size)
        torch.testing.assert_close(exported(*inputs), model(*inputs), rtol=1e-5, atol=1e-6)


def test_parameters_are_those_of_the_reference():
    config = small_config()
    shapes = [{n: p.shape for n, p in kind(config).state_dict().items()} for kind in (HSTA, reference.HSTA)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("attn_drop_rate", (0.0, 0.2))
def test_no_operator_is_left_out(attn_drop_rate, monkeypatch):
    """The fused model never takes the reference's explicit attention."""

    def explicit(*args):
        raise AssertionError("explicit attention")

    for attention in (reference.Attention, reference.CrossAttention):
        monkeypatch.setattr(attention, "attend", explicit)
    config = small_config(attn_drop_rate=attn_drop_rate, **DROPS)
    with hsta_kernels.backend("auto" if backends.cpu is None else "cpu"):  # which raises where it cannot run a call
        HSTA(config)(*make_inputs(config)).sum().backward()


def test_empty_batch():
    config = small_config()
    assert HSTA(config)(*make_inputs(config, batch=0)).shape == (0, config.num_classes)


def test_samples_do_not_depend_on_their_batch():
    config = small_config()
    model = same_model(HSTA, trained_reference(config).eval())
    video, special = make_inputs(config, batch=3)
    together = model(video, special)
    alone = torch.cat([model(video[i : i + 1], special[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)

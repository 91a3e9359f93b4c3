"""TimeSformer of transformers, patched: the results, gradients and manners of the original."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hsta_kernels
from tests.patching.patched import MISSING, assert_same_results, results, trained

transformers = pytest.importorskip("transformers", reason=MISSING)
FRAMES = 3


def tiny(attention_type: str = "divided_space_time", **settings) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.TimesformerConfig(
        image_size=24, patch_size=8, num_frames=FRAMES, hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, attention_type=attention_type, **settings,
    )  # fmt: skip
    return trained(transformers.TimesformerForVideoClassification(config))


def clip(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, FRAMES, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("attention_type", ["divided_space_time", "joint_space_time", "space_only"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_and_gradients_are_those_of_the_original(attention_type, training, dtype):
    original = tiny(attention_type).train(training)
    model = copy.deepcopy(original)
    report = hsta_kernels.patch(model)
    assert report.replaced == ["timesformer.encoder.layer.0", "timesformer.encoder.layer.1"] and not report.left
    assert_same_results(model, original, lambda seed: {"pixel_values": clip(seed)}, dtype)


@pytest.mark.parametrize("attention_type", ["divided_space_time", "joint_space_time"])
def test_inference_is_the_same_without_gradients(attention_type):
    model, video = tiny(attention_type), clip()
    expected = model(pixel_values=video).logits
    hsta_kernels.patch(model)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixel_values=video).logits, expected)


@pytest.mark.parametrize(("rows", "products"), [(7, 2), (17, 1)])
def test_two_linears_in_a_row_are_one_product_of_many_rows(rows, products):
    from hsta_kernels.patching.timesformer import _two_linears

    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    x = torch.randn(rows, 16)
    with FlopCounterMode(display=False) as counted:
        out = _two_linears(x, first, second)
    merging = 2 * 16**2 * (16 + 1) if products == 1 else 0  # of weights and bias
    assert counted.get_total_flops() == products * 2 * rows * 16**2 + merging
    expected = second(first(x))
    torch.testing.assert_close(out, expected)
    weights = [*first.parameters(), *second.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), weights),
        torch.autograd.grad(expected.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_original_forward_is_not_used(monkeypatch):
    """Or all of the above would hold with nothing replaced."""
    model = tiny()
    hsta_kernels.patch(model)
    layer = type(model.timesformer.encoder.layer[0]).__base__
    monkeypatch.setattr(layer, "forward", lambda *_: pytest.fail("the original was called"))
    model(pixel_values=clip())


def test_weights_names_and_hooks_are_left_alone():
    model, video = tiny(), clip()
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    classes = [type(module).__name__ for module in model.modules()]
    called = []
    model.timesformer.encoder.layer[1].register_forward_hook(lambda *_: called.append(True))
    expected = model(pixel_values=video).logits
    hsta_kernels.patch(model)
    torch.testing.assert_close(model(pixel_values=video).logits, expected)
    assert len(called) == 2
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert [type(module).__name__ for module in model.modules()] == classes
    hsta_kernels.patch(model)  # twice is once
    hsta_kernels.unpatch(model)
    hsta_kernels.unpatch(model)
    assert type(model.timesformer.encoder.layer[0]).__module__.startswith("transformers.")
    assert torch.equal(model(pixel_values=video).logits, expected)


@pytest.mark.parametrize("of", ["attention.attention.qkv", "temporal_dense", "output", "layernorm_before"])
def test_a_hook_inside_a_layer_is_called(of):
    model, called = tiny(), []
    hsta_kernels.patch(model)
    model.timesformer.encoder.layer[0].get_submodule(of).register_forward_hook(lambda *_: called.append(True))
    model(pixel_values=clip())
    assert called == [True]


def test_attention_weights_are_those_of_the_original():
    model, video = tiny(), clip()
    expected = model(pixel_values=video, output_attentions=True, output_hidden_states=True)
    hsta_kernels.patch(model)
    found = model(pixel_values=video, output_attentions=True, output_hidden_states=True)
    for ours, theirs in zip(found.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(ours, theirs)
    states = model(pixel_values=video, output_hidden_states=True).hidden_states
    for ours, theirs in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"attention_probs_dropout_prob": 0.4}, {"hidden_dropout_prob": 0.4}, {"drop_path_rate": 1}],
    ids=lambda settings: next(iter(settings)),
)
def test_what_drops_out_does_so_as_in_the_original(settings):
    model = tiny(**settings).train()
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.6  # the configuration takes whole numbers alone in transformers 5

    def logits() -> torch.Tensor:
        torch.manual_seed(3)
        return model(pixel_values=clip()).logits

    expected = logits()
    hsta_kernels.patch(model)
    torch.testing.assert_close(logits(), expected)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = tiny().train()
    hsta_kernels.patch(model)
    expected = results(model, {"pixel_values": clip()})
    model.gradient_checkpointing_enable()
    for name, grad in results(model, {"pixel_values": clip()}).items():
        assert torch.equal(grad, expected[name]), name


def test_autocast_and_the_compiler():
    model, video = tiny(), clip()
    hsta_kernels.patch(model)
    with torch.no_grad():
        expected = model(pixel_values=video).logits
        torch.testing.assert_close(torch.compile(model, backend="aot_eager")(pixel_values=video).logits, expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(pixel_values=video).logits
        assert mixed.dtype == torch.bfloat16 and (mixed.float() - expected).norm() < 0.1 * expected.norm()


def test_where_there_are_no_kernels_the_original_runs(monkeypatch):
    """In float64, and on a GPU."""
    model, called = tiny().double(), []
    hsta_kernels.patch(model)
    layer = type(model.timesformer.encoder.layer[0]).__base__
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *a: (called.append(True), forward(*a))[1])
    model(pixel_values=clip().double())
    assert len(called) == 2


def test_what_is_not_replaced_is_said():
    model = tiny(hidden_act="quick_gelu")
    report = hsta_kernels.patch(model)
    assert not report.replaced
    assert "hidden_act is QuickGELUActivation" in str(report)
    with pytest.raises(ValueError, match=r"model \(Linear\) has no module that is known here: TimeSformer, "):
        hsta_kernels.patch(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model must be an nn.Module; got str"):
        hsta_kernels.patch("timesformer")


def test_a_patched_model_is_saved_loaded_and_copied(tmp_path):
    model, video = tiny(), clip()
    hsta_kernels.patch(model)
    expected = model(pixel_values=video).logits
    assert torch.equal(copy.deepcopy(model)(pixel_values=video).logits, expected)
    model.save_pretrained(tmp_path)
    loaded = transformers.TimesformerForVideoClassification.from_pretrained(tmp_path).eval()
    assert type(loaded.timesformer.encoder.layer[0]).__module__.startswith("transformers.")
    hsta_kernels.patch(loaded)
    assert torch.equal(loaded(pixel_values=video).logits, expected)

"""Layers of ViViT, VideoMAE and V-JEPA 2, patched: what comes after attention is fused, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import hsta_kernels
from hsta_kernels.ops import fused_linear
from hsta_kernels.ops.add_layer_norm import autograd as add_layer_norm
from tests.models.parity import assert_results_agree, stack
from tests.patching.patched import MISSING, assert_same_results, results, trained

transformers = pytest.importorskip("transformers", reason=MISSING)

from hsta_kernels.patching.encoder_layers import LAYERS  # noqa: E402
from tests.patching.test_attention_interface import clip, videomae, vivit, vjepa2  # noqa: E402


@pytest.fixture(params=[vivit, videomae, vjepa2], ids=lambda make: make.__name__)
def make(request):
    def make(**settings) -> nn.Module:
        torch.manual_seed(0)
        return trained(request.param(attn_implementation="sdpa", **settings))

    return make


def layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ in {ours.__name__ for _, ours in LAYERS}]


def patched(original: nn.Module) -> nn.Module:
    model = copy.deepcopy(original)
    hsta_kernels.patch(model)
    return model


@pytest.fixture
def original_calls(monkeypatch) -> list:
    """Of layers that are patched but run as they were."""
    calls: list = []
    for theirs, _ in LAYERS:
        monkeypatch.setattr(
            theirs, "forward", lambda *a, _forward=theirs.forward, **more: (calls.append(a[0]), _forward(*a, **more))[1]
        )
    return calls


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_and_gradients_are_those_of_the_original(make, training, dtype):
    original = make().train(training)
    assert_same_results(patched(original), original, lambda seed: clip(original, seed), dtype)


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"])
def test_every_gelu_is_that_of_the_original(make, hidden_act):
    original = make(hidden_act=hidden_act).train()
    assert not hsta_kernels.patch(copy.deepcopy(original)).left
    assert_same_results(patched(original), original, lambda seed: clip(original, seed), torch.float32)


def test_layers_are_replaced_and_given_back(make, original_calls):
    model = make()
    expected = model(**clip(model)).logits
    before = len(original_calls)
    report = hsta_kernels.patch(model)
    assert before == 2 and all(type(m).__module__.startswith("hsta") for m in layers(model))
    assert {name for name, module in model.named_modules() if module in layers(model)} <= set(report.replaced)
    with torch.no_grad():
        torch.testing.assert_close(model(**clip(model)).logits, expected)
    assert len(original_calls) == before
    hsta_kernels.unpatch(model)
    assert torch.equal(model(**clip(model)).logits, expected) and len(original_calls) == before + 2


def test_neither_normalized_rows_nor_the_results_of_gelu_are_saved(make):
    original = make().train()

    def saved(model: nn.Module) -> int:
        sizes: dict[int, int] = {}
        parameters = {parameter.data_ptr() for parameter in model.parameters()}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in parameters:
                sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = layers(model)[0](torch.randn(2, 18, 48, requires_grad=True))
        del loss
        return sum(sizes.values())

    rows = 2 * 18 * 48  # of norms one and of GELU two times as many elements
    assert saved(original) - saved(patched(original)) >= 2.9 * rows


@pytest.mark.parametrize("what", ["hook", "dropout"])
def test_what_has_to_be_called_is(make, what, original_calls):
    model = patched(make())
    layer, called = layers(model)[0], []
    if what == "hook":
        linear = next(m for name, m in layer.named_modules() if name.endswith(("fc1", "intermediate.dense")))
        linear.register_forward_hook(lambda *_: called.append(True))
    else:
        model.train()
        dropout = next(m for name, m in layer.named_modules() if name in ("dropout", "output.dropout", "drop_path"))
        if not isinstance(dropout, nn.Dropout):
            layer.drop_path = dropout = nn.Dropout()
        dropout.p = 0.5
        dropout.register_forward_hook(lambda *_: called.append(True))
    model(**clip(model))
    assert called and original_calls == [layer]


def test_other_activations_are_left_and_said(make):
    model = make(hidden_act="silu")
    report = hsta_kernels.patch(model)
    assert set(report.left) == {name for name, module in model.named_modules() if module in layers(model)}
    assert set(report.left.values()) == {"hidden_act is SiLUActivation, no GELU"}


def test_gradient_checkpointing_gives_the_same_gradients(make):
    model = patched(make()).train()
    expected = results(model, clip(model))
    model.gradient_checkpointing_enable()
    for name, grad in results(model, clip(model)).items():
        torch.testing.assert_close(grad, expected[name], msg=name)


def test_hidden_states_are_those_of_the_original(make):
    original = make()
    expected = original(**clip(original), output_hidden_states=True).hidden_states
    found = patched(original)(**clip(original), output_hidden_states=True).hidden_states
    assert len(found) == len(expected) > 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_results_and_gradients_under_autocast(make):
    original = make()
    model, exact = patched(original), copy.deepcopy(original).double()
    draws: list[list] = [[], [], []]
    for seed in range(8):
        video = clip(original, seed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            draws[0].append(results(model, video))
            draws[1].append(results(original, video))
        draws[2].append(results(exact, {name: frames.double() for name, frames in video.items()}))
    assert_results_agree(*map(stack, draws))


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_fast"])
@pytest.mark.parametrize("autocast", [False, True])
def test_inference_in_pieces_is_that_of_the_original(make, hidden_act, autocast, monkeypatch):
    monkeypatch.setattr(fused_linear, "_PIECE", 1000)  # bytes: of two rows or three
    original = make(hidden_act=hidden_act)
    model, exact = patched(original), copy.deepcopy(original).double()
    draws: list[list] = [[], [], []]
    with torch.no_grad():
        for seed in range(8):
            video = clip(original, seed)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                draws[0].append({"logits": model(**video).logits})
                draws[1].append({"logits": original(**video).logits})
            wide = {name: frames.double() for name, frames in video.items()}
            draws[2].append({"logits": exact(**wide).logits})
    assert_results_agree(*map(stack, draws))


def test_the_norm_after_attention_is_the_kernels(make, monkeypatch):
    calls, apply = [], add_layer_norm.AddLayerNorm.apply
    monkeypatch.setattr(add_layer_norm.AddLayerNorm, "apply", lambda *a: (calls.append(a), apply(*a))[1])
    model = patched(make())
    with torch.no_grad():
        model(**clip(model))
    assert len(calls) == 2  # V-JEPA 2's predictor, its third, is not called

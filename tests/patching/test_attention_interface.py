"""Models of transformers that look attention up by name, patched: ViViT, VideoMAE and V-JEPA 2."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import hsta_kernels
from hsta_kernels.ops.space_time_attention import autograd
from tests.patching.patched import MISSING, assert_same_results, trained

transformers = pytest.importorskip("transformers", reason=MISSING)
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 48, "patch_size": 8}


def vivit(**settings) -> nn.Module:
    config = transformers.VivitConfig(
        image_size=24, num_frames=4, tubelet_size=[2, 8, 8], intermediate_size=96, attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0, **SIZES, **settings,
    )  # fmt: skip
    return transformers.VivitForVideoClassification(config)


def videomae(**settings) -> nn.Module:
    config = transformers.VideoMAEConfig(image_size=24, num_frames=4, intermediate_size=96, **SIZES, **settings)
    return transformers.VideoMAEForVideoClassification(config)


def vjepa2(**settings) -> nn.Module:
    config = transformers.VJEPA2Config(
        crop_size=24, frames_per_clip=4, num_pooler_layers=1, mlp_ratio=2, pred_hidden_size=48,
        pred_num_attention_heads=3, pred_num_hidden_layers=1, **SIZES, **settings,
    )  # fmt: skip
    return transformers.VJEPA2ForVideoClassification(config)


def clip(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    name = "pixel_values_videos" if type(model).__name__.startswith("VJEPA2") else "pixel_values"
    return {name: torch.randn(2, 4, 3, 24, 24, generator=torch.Generator().manual_seed(seed))}


@pytest.fixture(params=[vivit, videomae, vjepa2], ids=lambda make: make.__name__)
def make(request):
    def make(implementation: str = "sdpa", **settings) -> nn.Module:
        torch.manual_seed(0)
        return trained(request.param(attn_implementation=implementation, **settings))

    return make


@pytest.fixture
def kernel_calls(monkeypatch) -> list:
    calls, apply = [], autograd.SpaceTimeAttention.apply
    monkeypatch.setattr(autograd.SpaceTimeAttention, "apply", lambda *a: (calls.append(a), apply(*a))[1])
    return calls


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_results_and_gradients_are_those_of_the_original(make, implementation, kernel_calls):
    original = make(implementation)
    model = copy.deepcopy(original)
    report = hsta_kernels.patch(model)
    attentions = [name for name in report.replaced if "attention" in name]
    assert len(attentions) >= 2 and not report.left
    model(**clip(model))
    assert len(kernel_calls) == len(attentions)
    assert_same_results(model, original, lambda seed: clip(model, seed), torch.float32)
    hsta_kernels.unpatch(model)
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(**clip(model)).logits, original(**clip(model)).logits)


def test_attention_weights_are_those_of_eager_attention(make):
    model = make("eager")
    expected = model(**clip(model), output_attentions=True).attentions
    hsta_kernels.patch(model)
    found = model(**clip(model), output_attentions=True).attentions
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_attention_weights_of_a_call_by_position_and_of_one_within_another(make):
    model = make("eager")
    hsta_kernels.patch(model)
    base = getattr(model, model.base_model_prefix)
    assert base(**clip(model), output_attentions=True).attentions[0] is not None
    assert base(**clip(model)).last_hidden_state is not None and model.config._attn_implementation == "hsta"
    with pytest.raises(Exception, match=r"pixel|NoneType"):  # and what goes wrong leaves nothing behind
        model(**{name: None for name in clip(model)}, output_attentions=True)
    assert model.config._attn_implementation == "hsta"


def test_through_the_compiler_in_one_graph(make):
    model = make()
    hsta_kernels.patch(model)
    with torch.no_grad():
        expected = model(**clip(model)).logits
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(**clip(model)).logits, expected)


def test_dropout_of_probabilities_is_the_kernels(make, kernel_calls):
    """Drawn by PyTorch's generator, and the reference's with the same seed."""
    model = make()
    hsta_kernels.patch(model)
    plain = model(**clip(model)).logits
    model.train()
    for module in model.modules():
        for name in ("dropout_prob", "attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.4)
    logits = []
    for backend in ("auto", "reference"):
        torch.manual_seed(0)
        with hsta_kernels.backend(backend):
            logits.append(model(**clip(model)).logits)
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)
    assert kernel_calls and not torch.allclose(logits[0], plain, rtol=1e-3, atol=1e-4)


def test_chosen_by_name_and_then_patched(make):
    """There is no choice of before to go back to, and a call for attention weights has none, as with PyTorch's own."""
    from hsta_kernels.patching import attention_interface  # noqa: F401

    model = make()
    model.set_attn_implementation("hsta")
    hsta_kernels.patch(model)
    expected = model(**clip(model)).logits
    torch.testing.assert_close(model(**clip(model), output_attentions=True).logits, expected)
    hsta_kernels.unpatch(model)
    assert model.config._attn_implementation == "hsta"


def test_a_copy_of_a_patched_model_is_unpatched_by_itself(make):
    model = make("eager")
    hsta_kernels.patch(model)
    twin = copy.deepcopy(model)
    hsta_kernels.unpatch(twin)
    assert twin.config._attn_implementation == "eager" and model.config._attn_implementation == "hsta"

    def hooks(model: nn.Module) -> int:
        return len(model._forward_pre_hooks) + len(model._forward_hooks)

    assert (hooks(twin), hooks(model)) == (0, 2)


def test_another_choice_made_since_is_kept(make):
    model = make()
    hsta_kernels.patch(model)
    model.set_attn_implementation("eager")
    hsta_kernels.unpatch(model)
    assert model.config._attn_implementation == "eager"


def test_the_name_is_known_to_transformers(make):
    from hsta_kernels.patching import attention_interface  # noqa: F401

    model = make()
    expected = model(**clip(model)).logits
    model.set_attn_implementation("hsta")
    torch.testing.assert_close(model(**clip(model)).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_saved_configuration_says_nothing_of_it(make, tmp_path):
    model = make()
    hsta_kernels.patch(model)
    model.save_pretrained(tmp_path)
    assert "hsta" not in (tmp_path / "config.json").read_text()

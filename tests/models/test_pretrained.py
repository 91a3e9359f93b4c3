"""Models saved and loaded again, and what is not saved."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn.utils import parametrizations, prune

from hsta_kernels import HSTA
from tests.models.checkpoints import KINDS, assert_new_classifier, assert_same_state
from tests.models.parity import make_inputs, small_config, trained_reference


@KINDS
@pytest.mark.parametrize("attention", ["divided", "joint"])
def test_saved_and_loaded(tmp_path, kind, attention):
    model = trained_reference(small_config(attention=attention, drop_rate=0.1)).eval()
    model.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new/folder").iterdir()) == ["config.json", "model.safetensors"]
    loaded = kind.from_pretrained(tmp_path / "new/folder")
    assert type(loaded) is kind and not loaded.training
    assert loaded.config == model.config
    assert_same_state(loaded, model)
    inputs = make_inputs(model.config)
    torch.testing.assert_close(loaded(*inputs), model(*inputs))


@KINDS
def test_a_changed_classifier_is_saved_as_it_is(tmp_path, kind):
    model = kind(small_config(num_classes=7))
    model.head = torch.nn.Linear(model.head.in_features, 3)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_classes"] == 3
    loaded = kind.from_pretrained(tmp_path)
    assert loaded.config.num_classes == 3
    assert_same_state(loaded, model)
    inputs = make_inputs(loaded.config)
    torch.testing.assert_close(loaded(*inputs), model.eval()(*inputs), rtol=0, atol=0)


class Adapter(torch.nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base, self.down = base, torch.nn.Linear(base.in_features, 2, bias=False)


class Cosine(torch.nn.Linear):
    pass


def exchange(model, path, make):
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, make(model.get_submodule(path)))


def half_meta(model):
    model.norm.to("meta")


UNSAVABLE = {
    "adapter": (
        lambda model: exchange(model, "blocks.0.blocks.1.0.attn.qkv", Adapter),
        r"it lacks blocks\.0\.blocks\.1\.0\.attn\.qkv\.weight$",
    ),
    "pruned": (
        lambda model: prune.l1_unstructured(model.blocks[0].blocks[0][0].mlp.fc1, "weight", 0.5),
        r"it lacks blocks\.0\.blocks\.0\.0\.mlp\.fc1\.weight$",
    ),
    "parametrized": (lambda model: parametrizations.weight_norm(model.head), r"it lacks head\.weight$"),
    "quantized": (
        lambda model: torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, inplace=True),
        r"it lacks .*attn\.qkv\.weight, .* and \d+ more$",
    ),
    "identity": (
        lambda model: exchange(model, "head", lambda _: torch.nn.Identity()),
        r"lacks head\.weight, head\.bias$",
    ),
    "sequential": (lambda model: exchange(model, "head", torch.nn.Sequential), r"lacks head\.weight, head\.bias$"),
    "no bias": (
        lambda model: exchange(model, "head", lambda _: torch.nn.Linear(72, 5, bias=False)),
        r"lacks head\.bias$",
    ),
    "other width": (
        lambda model: exchange(model, "head", lambda old: torch.nn.Linear(70, 5)),
        r"head\.weight has shape \(5, 70\), expected \(5, 72\)$",
    ),
    "extra": (lambda model: model.register_buffer("calls", torch.zeros(())), r"it has unknown calls$"),
    "compiled": (
        lambda model: exchange(model, "norm.1", torch.compile),
        r"lacks norm\.1\.weight, norm\.1\.bias$",
    ),
    "meta": (half_meta, r"norm\.0\.weight is on the meta device, which holds no values, norm.* and 1 more$"),
    "activation": (
        lambda model: exchange(model, "blocks.1.projs.0.1", lambda _: torch.nn.ReLU()),
        r"blocks\.1\.projs\.0\.1 is a ReLU, expected a GELU$",
    ),
    "classifier": (
        lambda model: exchange(model, "head", lambda _: Cosine(72, 5)),
        r"head is a Cosine, expected a Linear$",
    ),
    "tied": (
        lambda model: setattr(model.norm[0], "bias", model.norm[0].weight),
        r"norm\.0\.weight is tied to another parameter, norm\.0\.bias is tied to another parameter$",
    ),
    "float64": (
        lambda model: model.double(),
        r"patch_embed\.0\.proj\.weight is torch\.float64, which float32 does not hold, .* more$",
    ),
    "integers": (
        lambda model: setattr(model.head, "weight", torch.nn.Parameter(torch.ones(5, 72).char(), requires_grad=False)),
        r"head\.weight is torch\.strided torch\.int8, expected dense floating-point numbers$",
    ),
}


@KINDS
@pytest.mark.parametrize("change", UNSAVABLE)
@pytest.mark.filterwarnings("ignore")  # of PyTorch's own quantization, which is one of the changes
def test_what_could_not_be_loaded_is_not_saved(tmp_path, kind, change):
    model = kind(small_config())
    apply, reason = UNSAVABLE[change]
    apply(model)
    with pytest.raises(ValueError, match="what is saved of this model would not load as it is: .*" + reason):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_numbers_are_loaded_exactly(tmp_path, kind, dtype):
    model = trained_reference(small_config()).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    assert_same_state(loaded, model.float())


@KINDS
def test_saving_draws_no_random_numbers(tmp_path, kind):
    model = kind(small_config())
    state = torch.get_rng_state()
    model.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


@KINDS
@pytest.mark.parametrize("num_classes", [3, np.int64(9)])
def test_a_new_classifier_is_drawn_when_asked(tmp_path, kind, num_classes):
    model = trained_reference(small_config(num_classes=5))
    model.save_pretrained(tmp_path)
    text = rf"model\.safetensors has 5 classes, the model {num_classes}: its classifier is drawn anew"
    with pytest.warns(UserWarning, match=text) as warnings:
        loaded = kind.from_pretrained(tmp_path, num_classes=num_classes)
    assert [warning.filename for warning in warnings] == [__file__]
    assert_new_classifier(loaded, model, num_classes)
    with pytest.raises(ValueError, match="num_classes must be a positive integer, got 0"):
        kind.from_pretrained(tmp_path, num_classes=0)


@KINDS
@pytest.mark.filterwarnings("error")
def test_the_same_number_of_classes_keeps_the_classifier(tmp_path, official, kind):
    official.save_pretrained(tmp_path)
    assert_same_state(kind.from_pretrained(tmp_path, num_classes=3), official)
    assert_same_state(kind.from_official(official.state_dict(), num_classes=3), official)


@KINDS
def test_a_new_classifier_excuses_nothing_else(tmp_path, kind):
    model = trained_reference(small_config())
    model.save_pretrained(tmp_path)
    for changed, reason in (
        ({"head.weight": torch.zeros(5, 70)}, r"head\.weight has shape \(5, 70\), expected \(5, 72\)"),
        ({"norm.0.bias": torch.zeros(3)}, r"norm\.0\.bias has shape \(3,\), expected \(24,\)"),
        ({"norm.0.bias": torch.zeros(24).int()}, r"norm\.0\.bias is .* torch\.int32, expected dense .* numbers"),
    ):
        safetensors.torch.save_file({**model.state_dict(), **changed}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=rf"model\.safetensors does not fit the model: {reason}$"):
            kind.from_pretrained(tmp_path, num_classes=2)


def test_hub_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"no directory someone/model, .* `pip install hsta-kernels\[hub\]`"):
        HSTA.from_pretrained("someone/model")


def test_hub(tmp_path, monkeypatch):
    """With a stand-in for the client: the test needs neither the extra nor a network."""

    class HTTPError(Exception):
        pass

    def snapshot_download(name, allow_patterns):
        assert sorted(allow_patterns) == ["config.json", "model.safetensors"]
        if name != "someone/model":
            raise HTTPError("404")
        return str(tmp_path)

    hub, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    hub.snapshot_download = snapshot_download
    errors.HfHubHTTPError = errors.HFValidationError = errors.LocalEntryNotFoundError = HTTPError
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    model = trained_reference(small_config())
    model.save_pretrained(tmp_path)
    assert_same_state(HSTA.from_pretrained("someone/model"), model)
    with pytest.raises(FileNotFoundError, match=r"someone/else, and the Hub answers: 404"):
        HSTA.from_pretrained("someone/else")

"""Saved models, and the authors' checkpoints."""

from __future__ import annotations

import argparse
import json
import re
import sys
import types
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn.utils import parametrizations, prune

from hsta_kernels import HSTA, reference
from tests.models.parity import make_inputs, small_config, trained_reference

KINDS = pytest.mark.parametrize("kind", [HSTA, reference.HSTA], ids=["fused", "reference"])

# Of a published width, so that the number of heads is known; three classes.
OFFICIAL = {
    "embed_dim": (96, 192),
    "num_heads": (3, 3),
    "depth": ((1, 2), (1, 1)),
    "attention": "joint",
    "num_classes": 3,
    "mlp_ratio": (4.0, 2.0),
    "image_size": 50,
}


@pytest.fixture
def official() -> reference.HSTA:
    return trained_reference(small_config(**OFFICIAL)).eval()


def assert_same_state(model: torch.nn.Module, other: torch.nn.Module) -> None:
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name


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


def test_an_interrupted_save_leaves_the_old_files(tmp_path, monkeypatch):
    trained_reference(small_config()).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(path, tensors, metadata):
        path.write_bytes(b"a beginning")
        raise OSError("no space left")

    monkeypatch.setattr("hsta_kernels.tensor_files.save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        trained_reference(small_config()).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Stop(BaseException):
    """The process ends here."""


@KINDS
@pytest.mark.parametrize("older", [False, True], ids=["with checksum", "of an older version"])
def test_a_save_interrupted_between_its_two_files_is_never_silent(tmp_path, monkeypatch, kind, older):
    """Both configurations fit both files of weights: only the number of frames differs."""
    old, new = trained_reference(small_config(num_frames=6)), trained_reference(small_config(num_frames=8))
    old.save_pretrained(tmp_path)
    if older:
        safetensors.torch.save_file(old.state_dict(), tmp_path / "model.safetensors")
    replaced = []

    def replace_once(source, target):
        if replaced:
            raise Stop
        replaced.append(target)
        Path(source).rename(target)

    def save_and_stop(model):
        replaced.clear()
        monkeypatch.setattr("os.replace", replace_once)
        with pytest.raises(Stop):
            model.save_pretrained(tmp_path)
        monkeypatch.undo()
        assert len(replaced) == 1

    save_and_stop(new)
    with pytest.raises(
        ValueError, match=r"config\.json is not the .* model\.safetensors was saved with: it has num_frames 6, not 8\."
    ):
        kind.from_pretrained(tmp_path)
    old.save_pretrained(tmp_path)
    assert_same_state(kind.from_pretrained(tmp_path), old)
    # Of one configuration, weights may go alone.
    same = trained_reference(old.config)
    save_and_stop(same)
    assert_same_state(kind.from_pretrained(tmp_path), same)


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


def assert_new_classifier(model, old, num_classes):
    assert model.config == replace(old.config, num_classes=num_classes) and not model.training
    state, expected = model.state_dict(), old.state_dict()
    weight, bias = state.pop("head.weight"), state.pop("head.bias")
    assert weight.shape == (num_classes, old.head.in_features)
    # As reference._init_weights draws: normal, of standard deviation 0.02; the scatter of its estimate is 0.02 / √2n.
    assert abs(weight.std() - 0.02) < 4 * 0.02 / (2 * weight.numel()) ** 0.5
    assert bias.count_nonzero() == 0
    assert expected.keys() - state.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


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


@KINDS
def test_official_checkpoints_with_other_classes(official, kind):
    with pytest.warns(UserWarning, match="the state dict has 3 classes, the model 4: its classifier is drawn anew"):
        model = kind.from_official(official.state_dict(), image_size=50, num_classes=4)
    assert_new_classifier(model, official, 4)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no directory nothing"):
        HSTA.from_pretrained("nothing")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json and no model\.safetensors"):
        HSTA.from_pretrained(tmp_path)
    HSTA(small_config()).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors$"):
        HSTA.from_pretrained(tmp_path)


def test_damaged_files_are_named(tmp_path):
    HSTA(small_config()).save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "depth": [[2, 2], [2, 2]]}))
    with pytest.raises(
        ValueError, match=r"model\.safetensors does not fit the model: it lacks blocks\.0\..* and \d+ more"
    ):
        HSTA.from_pretrained(tmp_path)
    config.write_text(json.dumps({**fields, "num_classes": 6}))
    with pytest.raises(ValueError, match=r"head\.weight has shape \(5, 72\), expected \(6, 72\)"):
        HSTA.from_pretrained(tmp_path)
    config.write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json must hold the fields of HSTAConfig"):
        HSTA.from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        HSTA.from_pretrained(tmp_path)
    config.write_text(json.dumps(fields))
    weights.write_bytes(b"not this")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file"):
        HSTA.from_pretrained(tmp_path)


@KINDS
def test_no_damage_is_loaded_in_silence(tmp_path, kind):
    """Up to 512 bytes of zeros or of anything, or a lost end, anywhere in the file."""
    trained_reference(small_config()).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    random = Random(0)
    for draw in range(300):
        place = random.randrange(header if draw % 2 else len(content))
        length = random.choice((1, 2, 8, 64, 512))
        damaged = random.choice(
            (
                content[:place] + bytes(length) + content[place + length :],
                content[:place] + random.randbytes(length) + content[place + length :],
                content[:place] + bytes(byte ^ 0x20 for byte in content[place:][:length]) + content[place + length :],
                content[:place],
            )
        )
        if damaged != content:
            weights.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"model\.safetensors is (damaged|not a safetensors file)"):
                kind.from_pretrained(tmp_path)


@KINDS
def test_weights_without_a_checksum_are_loaded(tmp_path, kind):
    model = trained_reference(small_config())
    model.save_pretrained(tmp_path)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same_state(kind.from_pretrained(tmp_path), model)


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


def named(prefix: str, state_dict: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state_dict.items()}


def inside(part: str, wrapper: str, state_dict: dict) -> dict:
    return {name.replace(part, part + wrapper): tensor for name, tensor in state_dict.items()}


TRAINING = {"optimizer": {"state": {}, "param_groups": []}, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}

# How a state dict is wrapped, and what the log says of it.
WRAPPINGS = {
    "bare": (lambda s: s, ""),
    "model": (lambda s: {"model": s, **TRAINING}, "loaded what is in 'model'"),
    "module": (lambda s: {"module": s}, "loaded what is in 'module'"),
    "lightning": (lambda s: {"state_dict": named("model.", s)}, "loaded what is in 'state_dict', in it in 'model'"),
    "nested": (lambda s: {"model": {"module": named("module.model.", s)}}, "'module', in it in 'model'"),
    "compiled": (lambda s: named("_orig_mod.", s), "loaded what is in '_orig_mod'"),
    "compiled, distributed": (lambda s: named("module._orig_mod.", s), "'module', in it in '_orig_mod'"),
    "distributed, compiled": (lambda s: {"model": named("_orig_mod.module.", s)}, "'_orig_mod', in it in 'module'"),
    "compiled block": (
        lambda s: inside("blocks.0.", "_orig_mod.", s),
        "removed _orig_mod and module from blocks.0._orig_mod.blocks.0._orig_mod.0.norm1.weight, ",
    ),
    "everywhere": (lambda s: named("module.", inside(".attn.", "_orig_mod.module.", s)), "0.attn._orig_mod.module."),
    "timm's average": (lambda s: {"state_dict_ema": named("module.", s)}, "'state_dict_ema', in it in 'module'"),
    "average": (lambda s: {"ema": {"decay": 0.99, "module": s}}, "loaded what is in 'ema', in it in 'module'"),
    "average in names": (lambda s: named("model_ema.module.", s), "loaded what is in 'model_ema', in it in 'module'"),
    "AveragedModel": (
        lambda s: {"n_averaged": torch.tensor(3), **named("module._orig_mod.", s)},
        "loaded what is in 'module' without n_averaged, in it in '_orig_mod'",
    ),
}


@KINDS
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_official_checkpoints(tmp_path, official, kind, wrapping, caplog):
    caplog.set_level("INFO", "hsta_kernels")
    wrap, said = WRAPPINGS[wrapping]
    checkpoint = wrap(official.state_dict())
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    for source in (checkpoint, tmp_path / "checkpoint.pth", str(tmp_path / "checkpoint.pth")):
        caplog.clear()
        model = kind.from_official(source, image_size=50)
        assert type(model) is kind and not model.training
        assert model.config == official.config
        assert_same_state(model, official)
        name = "the state dict" if source is checkpoint else str(source)
        assert said in caplog.text and all(text.startswith(f"{name}: ") for text in caplog.messages)
        assert {record.levelname for record in caplog.records} == ({"INFO"} if said else set())


def test_what_pytorch_itself_wraps_is_loaded(official):
    """The names that this PyTorch gives, not those that are written above."""
    whole = torch.compile(torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(official)))
    official.blocks[0] = torch.compile(official.blocks[0])
    part = official.state_dict()
    official.blocks[0] = official.blocks[0]._orig_mod
    for state_dict in (whole.state_dict(), part):
        assert state_dict.keys() != official.state_dict().keys()
        assert_same_state(HSTA.from_official(state_dict, image_size=50), official)


@KINDS
@pytest.mark.parametrize(
    "join",
    [
        lambda weights, average: {"model_ema": average, "model": weights},
        lambda weights, average: {"epoch": 1, "state_dict": weights, "state_dict_ema": {"module": average}},
        lambda weights, average: {**named("model_ema.module.", average), **named("model.", weights)},
    ],
    ids=["dictionaries", "timm", "names"],
)
def test_beside_averages_the_weights_are_loaded_with_a_warning(official, kind, join, caplog):
    average = trained_reference(official.config).state_dict()
    checkpoint = join(official.state_dict(), average)
    assert_same_state(kind.from_official(checkpoint, image_size=50), official)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert re.search(
        r"the state dict holds '(model|state_dict)', which is loaded, beside '\1_ema': to load another, pass it alone",
        caplog.text,
    )


def test_one_weight_under_two_names_is_an_error(official):
    state_dict = official.state_dict()
    state_dict["norm._orig_mod.1.bias"] = state_dict["norm.1.bias"] + 1
    with pytest.raises(ValueError, match=r"the state dict holds norm\.1\.bias twice, once as norm\._orig_mod\.1\.bias"):
        HSTA.from_official(state_dict)


@KINDS
def test_what_belongs_to_no_hsta_is_named(tmp_path, official, kind):
    state_dict = official.state_dict()
    path = tmp_path / "more.pth"
    for extra, names in (
        (["pos_embed"], "pos_embed$"),
        (["position_0", "position_1"], "position_0, position_1$"),
        (["norm.0.num_batches_tracked"], r"norm\.0\.num_batches_tracked$"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 more$"),
        (["n_averaged"], "n_averaged$"),  # beside no wrapper
    ):
        torch.save({"model": {**state_dict, **dict.fromkeys(extra, torch.tensor(1))}}, path)
        with pytest.raises(ValueError, match=rf"more\.pth does not fit the model: it has unknown {names}"):
            kind.from_official(path, image_size=50)
    torch.save({"model": named("encoder.", state_dict)}, path)
    with pytest.raises(
        ValueError, match=r"more\.pth is not .* it has encoder\.patch_embed.*, encoder\.\S*, encoder\.\S* and \d+ more$"
    ):
        kind.from_official(path)
    torch.save({"net": state_dict, "epoch": 3}, path)
    with pytest.raises(ValueError, match=r"more\.pth is not a checkpoint: .* it has 'net' \(\w+\), 'epoch' \(int\)"):
        kind.from_official(path)


def test_official_safetensors(tmp_path, official):
    safetensors.torch.save_file(official.state_dict(), tmp_path / "checkpoint.safetensors")
    assert_same_state(HSTA.from_official(tmp_path / "checkpoint.safetensors", image_size=50), official)


def test_divided_checkpoints_are_recognized():
    model = trained_reference(small_config(**{**OFFICIAL, "attention": "divided"}))
    assert HSTA.from_official(model.state_dict(), image_size=50).config == model.config


def test_overrides(official):
    state_dict = official.state_dict()
    config = HSTA.from_official(state_dict, num_frames=16, head="mean", drop_path_rate=0.1).config
    assert (config.num_frames, config.head, config.drop_path_rate, config.image_size) == (16, "mean", 0.1, 224)
    for field, value in (("attention", "divided"), ("depth", ((1, 2),))):
        with pytest.raises(ValueError, match=f"the state dict has {field} .*, which contradicts {field}="):
            HSTA.from_official(state_dict, **{field: value})
    with pytest.raises(ValueError, match="classifier of 288 features, head='cls_last' has 576"):
        HSTA.from_official(state_dict, head="cls_last")
    with pytest.raises(ValueError, match="'classes' is not a field"):
        HSTA.from_official(state_dict, classes=3)


def test_a_wide_classifier_means_the_last_tokens():
    model = reference.HSTA(small_config(**OFFICIAL, head="cls_last"))
    assert HSTA.from_official(model.state_dict()).config.head == "cls_last"


def test_unpublished_widths_need_their_heads():
    model = reference.HSTA(small_config(attention="joint"))
    with pytest.raises(ValueError, match=r"no model of embed_dim \(24, 48\) was published: give its num_heads"):
        HSTA.from_official(model.state_dict())
    assert HSTA.from_official(model.state_dict(), num_heads=(3, 6)).config.num_heads == (3, 6)


def test_incomplete_and_foreign_state_dicts(official):
    state_dict = official.state_dict()
    without = {name: tensor for name, tensor in state_dict.items() if name != "norm.1.bias"}
    with pytest.raises(ValueError, match=r"the state dict does not fit the model: it lacks norm\.1\.bias$"):
        HSTA.from_official(without)
    with pytest.raises(ValueError, match=r"it has unknown blocks\.0\.gamma$"):
        HSTA.from_official({**state_dict, "blocks.0.gamma": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"not a checkpoint of an HSTA model: it lacks patch_embed\.0\.proj\.weight"):
        HSTA.from_official({"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"not a checkpoint of an HSTA model: head\.weight has shape \(3,\)"):
        HSTA.from_official({**state_dict, "head.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"norm\.1\.bias has shape \(5,\), expected \(192,\)"):
        HSTA.from_official({**state_dict, "norm.1.bias": torch.zeros(5)})
    with pytest.raises(ValueError, match="patch embeddings that HSTA does not know"):
        HSTA.from_official({**state_dict, "patch_embed.0.proj.weight": torch.zeros(96, 1, 2, 12, 12)})


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*nothing\.pth"):
        HSTA.from_official(tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="is not a checkpoint: it is not a file"):
        HSTA.from_official(tmp_path)
    for name, what in (
        ("text.pth", "checkpoint: it is damaged, or holds"),
        ("text.safetensors", "safetensors file: "),
    ):
        (tmp_path / name).write_text("these are words, not weights")
        with pytest.raises(ValueError, match=rf"{name} is not a {what}"):
            HSTA.from_official(tmp_path / name)
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match=r"empty\.pth is not a checkpoint"):
        HSTA.from_official(tmp_path / "empty.pth")
    for content in ([1, 2], {}, {"model": 3}, {"epoch": 3}):
        torch.save(content, tmp_path / "list.pth")
        with pytest.raises(ValueError, match=r"list\.pth is not a checkpoint: "):
            HSTA.from_official(tmp_path / "list.pth")


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("code of the checkpoint ran",))


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    torch.save({"model": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad\.pth is not a checkpoint: .* more than tensors"):
        HSTA.from_official(tmp_path / "bad.pth")

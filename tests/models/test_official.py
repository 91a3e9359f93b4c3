"""The authors' checkpoints, however they are wrapped."""

from __future__ import annotations

import argparse
import re

import pytest
import safetensors.torch
import torch

from hsta_kernels import HSTA, reference
from tests.models.checkpoints import KINDS, OFFICIAL, assert_new_classifier, assert_same_state
from tests.models.parity import small_config, trained_reference


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


@KINDS
def test_official_checkpoints_with_other_classes(official, kind):
    with pytest.warns(UserWarning, match="the state dict has 3 classes, the model 4: its classifier is drawn anew"):
        model = kind.from_official(official.state_dict(), image_size=50, num_classes=4)
    assert_new_classifier(model, official, 4)

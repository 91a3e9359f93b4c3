from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from hsta_kernels import HSTAConfig, create_model, list_models
from hsta_kernels.models.config import PUBLISHED_HEADS


def test_json_round_trip():
    config = HSTAConfig(depth=((1, 4),) * 3, attention="joint", mlp_ratio=(3, 4.0), drop_path_rate=0.1)
    again = HSTAConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.depth == ((1, 4), (1, 4), (1, 4))
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    "fields, plain",
    [
        ({"num_classes": np.int64(5), "image_size": np.uint16(64)}, {"num_classes": 5, "image_size": 64}),
        ({"num_classes": np.array(5)}, {"num_classes": 5}),
        ({"drop_rate": np.float32(0.25), "head_drop_rate": np.array(0.5)}, {"drop_rate": 0.25, "head_drop_rate": 0.5}),
        ({"drop_path_rate": np.float64(0.1)}, {"drop_path_rate": 0.1}),
        ({"attn_drop_rate": np.int8(0)}, {"attn_drop_rate": 0}),
        ({"mlp_ratio": (np.float16(2), np.int32(3))}, {"mlp_ratio": (2.0, 3)}),
        ({"patch_size": np.array([12, 16]), "embed_dim": torch.Size([24, 48])}, {"embed_dim": (24, 48)}),
        ({"depth": np.full((3, 2), 4)}, {"depth": ((4, 4),) * 3}),
        ({"depth": [np.array([1, 2]), (np.int64(2), 1)]}, {"depth": ((1, 2), (2, 1))}),
        ({"attention": np.str_("joint")}, {"attention": "joint"}),
    ],
)
def test_numpys_values_are_stored_as_pythons(fields, plain):
    config = HSTAConfig(**fields)
    assert config == HSTAConfig(**plain) and hash(config) == hash(HSTAConfig(**plain))
    assert json.dumps(config.to_dict()) == json.dumps(HSTAConfig(**plain).to_dict())

    def leaves(value):
        return [leaf for item in value for leaf in leaves(item)] if isinstance(value, tuple) else [value]

    types = {type(leaf) for value in config.to_dict().values() for leaf in leaves(value)}
    assert types == {int, float, str, type(None)}


def test_derived_sizes():
    config = HSTAConfig()
    assert config.frames == (2, 6)
    assert config.grids == ((1, 18, 18), (3, 14, 14))
    assert (config.head_width, HSTAConfig(head="cls_last").head_width) == (1152, 2304)


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        HSTAConfig().num_classes = 3


@pytest.mark.parametrize(
    "field, value",
    [
        ("image_size", 0),
        ("image_size", 224.0),
        ("patch_size", (12,)),
        ("patch_size", (12, 300)),
        ("embed_dim", (384, -768)),
        ("embed_dim", (384, 770)),
        ("num_heads", 12),
        ("num_heads", (True, 12)),
        ("mlp_ratio", (4.0, 0.0)),
        ("mlp_ratio", ("4", "4")),
        ("depth", ()),
        ("depth", (1, 2)),
        ("depth", ((1, 0),)),
        ("num_frames", 7),
        ("tubelet_size", 3),
        ("attention", "both"),
        ("head", ["cls"]),
        ("num_classes", None),
        ("drop_rate", 1.0),
        ("attn_drop_rate", -0.1),
        ("drop_path_rate", "0.1"),
        ("head_drop_rate", float("nan")),
        ("num_classes", np.True_),
        ("num_classes", np.float32(5)),
        ("num_classes", np.array([5])),
        ("embed_dim", np.array([24.0, 48.0])),
        ("num_heads", np.array([True, True])),
        ("drop_rate", np.float32("nan")),
        ("drop_path_rate", np.bool_(False)),
        ("head", np.array(["cls"])),
    ],
)
def test_impossible_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be "):
        HSTAConfig(**{field: value})


def test_unknown_fields_are_refused():
    with pytest.raises(ValueError, match="'classes' is not a field of HSTAConfig; the fields are image_size, "):
        HSTAConfig.from_dict({"classes": 3})


def test_models_by_name():
    assert list_models() == [
        "hsta_tiny_224",
        "hsta_small_224",
        "hsta_base_224",
        "hsta_tiny_k3_224",
        "hsta_small_k3_224",
        "hsta_base_k3_224",
    ]
    model = create_model("hsta_tiny_224", num_classes=3, attention="joint")
    assert model.config == HSTAConfig(
        embed_dim=(96, 192), num_heads=(3, 3), depth=((1, 2),) * 4, num_classes=3, attention="joint"
    )
    assert create_model("hsta_tiny_k3_224").config.depth == ((1, 4),) * 3


def test_every_named_model_is_a_published_size():
    for dims, heads in PUBLISHED_HEADS.items():
        assert HSTAConfig(embed_dim=dims, num_heads=heads).num_heads == heads


def test_unknown_names_are_answered_with_the_closest():
    with pytest.raises(ValueError, match=r"no model 'hsta_tinny_224'; did you mean hsta_tiny_224 or "):
        create_model("hsta_tinny_224")
    with pytest.raises(ValueError, match="hsta_base_224"):
        create_model("zzz")
    with pytest.raises(ValueError, match="'classes' is not a field"):
        create_model("hsta_tiny_224", classes=3)

"""The order of the clips, the learning rate and what decays."""

import math
from collections import Counter

import numpy as np
import pytest
from hsta.cli import main
from hsta.cli.presets import PRESETS, expand
from hsta.cli.train import Train
from hsta.errors import UserError
from hsta.training.clip_order import BalancedSampler
from hsta.training.loop import class_weights, multi_hot
from hsta.training.recipe import Recipe, parameter_groups
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

import hsta_kernels

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(LABELS, st.integers(0, 5))
def test_classes_come_equally_often_and_no_clip_again_before_the_others(labels, epoch):
    sampler = BalancedSampler(labels, seed=0)
    sampler.epoch = epoch
    order = list(sampler)
    assert len(order) == len(sampler) == len(labels)
    classes = Counter(labels[i] for i in order)
    shares = [classes[label] for label in set(labels)]
    assert max(shares) - min(shares) <= 1
    times = Counter(order)
    for label in set(labels):
        members = [times[i] for i in range(len(labels)) if labels[i] == label]
        assert max(members) - min(members) <= 1


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = BalancedSampler([0, 1] * 20, seed)
        sampler.epoch = epoch
        return list(sampler)

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


@given(LABELS.filter(lambda labels: len(labels) >= 3), st.integers(2, 3))
def test_devices_share_an_epoch(labels, ranks):
    whole = list(BalancedSampler(labels, 0))
    parts = [list(BalancedSampler(labels, 0, rank, ranks)) for rank in range(ranks)]
    assert {len(part) for part in parts} == {len(labels) // ranks}
    together = [i for group in zip(*parts, strict=True) for i in group]
    assert together == whole[: len(together)]


def test_the_rate_warms_up_and_falls_along_a_cosine():
    recipe = Recipe(epochs=25, warmup_epochs=5, learning_rate=1e-3)
    peak = 1e-3 * 32 / 256
    assert recipe.learning_rate_at(0, 32) == 0
    assert recipe.learning_rate_at(2.5, 32) == pytest.approx(peak / 2)
    assert recipe.learning_rate_at(5, 32) == pytest.approx(peak)
    assert recipe.learning_rate_at(15, 32) == pytest.approx(peak / 2)
    assert recipe.learning_rate_at(20, 32) == pytest.approx(peak * 0.5 * (1 + math.cos(0.75 * math.pi)))
    assert recipe.learning_rate_at(25, 32) == pytest.approx(0)


def test_the_defaults_are_the_authors():
    r = Recipe()
    assert (r.epochs, r.batch_size, r.learning_rate, r.warmup_epochs, r.weight_decay) == (150, 32, 5e-4, 5, 0.05)
    assert (r.layer_decay, r.drop_rate, r.drop_path_rate) == (0.9, 0.2, 0.2)


def test_every_parameter_is_in_one_group_with_the_rate_of_its_block():
    model = hsta_kernels.create_model("hsta_tiny_224", image_size=32, num_frames=2, depth=((1, 1), (1, 1)))
    groups = parameter_groups(model, Recipe())
    found = {parameter: group for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        steps = {"patch_embed": 3, "cls_token": 3, "blocks.0": 2, "blocks.1": 1, "norm": 0, "head": 0}
        power = next(power for prefix, power in steps.items() if name.startswith(prefix))
        assert found[parameter]["scale"] == pytest.approx(0.9**power), name
        spared = name.endswith("bias") or "norm" in name or "cls_token" in name or parameter.ndim == 1
        assert found[parameter]["weight_decay"] == (0 if spared else 0.05), name
    assert np.isclose(sum(p.numel() for g in groups for p in g["params"]), sum(p.numel() for p in model.parameters()))


@given(LABELS)
def test_class_weights_are_scikit_learns(labels):
    expected = np.zeros(5)
    expected[np.unique(labels)] = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    np.testing.assert_allclose(class_weights(multi_hot(labels, 5)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"label_smoothing": 1.0}, {"mixup": -1.0}, {"ema_decay": 1.0}, {"augment": 1.5}, {"augment": math.nan}]
)
def test_what_cannot_be_is_refused_by_name(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"{name} must be .*, got {value}"):
        Recipe(**wrong)


def test_a_preset_comes_before_what_is_given():
    for given_as in (["--preset", "quick"], ["--preset=quick"]):
        arguments = ["train", "--epochs", "3", *given_as]
        assert expand(arguments) == ["train", *PRESETS["quick"].split(), "--epochs", "3", *given_as]
    assert expand(["train", "--epochs", "3"]) == ["train", "--epochs", "3"]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_options_and_the_last_one_counts(preset, monkeypatch):
    seen = []
    monkeypatch.setattr(Train, "run", lambda command: seen.append(command))
    given = ["--data", "d", "--output", "o", "--epochs", "7", "--depth", "1", "2"]
    assert main(["train", "--preset", preset, *given]) == 0
    assert (seen[0].recipe.epochs, seen[0].model.depth, seen[0].preset) == (7, ((1, 2),), preset)
    if preset == "authors-casme3":
        assert seen[0].recipe == Recipe(epochs=7)
        assert (seen[0].model.model, seen[0].model.attention, seen[0].model.num_frames) == ("hsta_base_224", "joint", 6)

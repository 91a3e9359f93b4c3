"""What the tests of saved models and of the authors' checkpoints share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hsta_kernels import HSTA, reference

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


def assert_same_state(model: torch.nn.Module, other: torch.nn.Module) -> None:
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name


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

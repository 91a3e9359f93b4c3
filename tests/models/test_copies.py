"""Activations are not copied: what moves as it is, unchanged, is counted by the profiler and known by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.profiler import profile, record_function

import hsta_kernels
from hsta_kernels import backends
from hsta_kernels.models import hsta, reference

pytestmark = pytest.mark.skipif(
    backends.unavailable("cpu") is not None, reason="the CPU kernels are not built; the reference copies freely"
)

BLOCKS, BRANCHES, BATCH = 2, 2, 2
SMALLEST_ACTIVATION = BATCH * 196 * 96  # patches of a frame in the narrower branch

# A copy, by the first of these that it happens in.
KNOWN = {
    "qkv_bias": "three biases as one",
    "classify": "both branches' features",
    "tubelets": "pixels, into the rows of the patch embedding's product",
    "_join": "CLS before the patches: a new token for every block",
    "SplitWithSizesBackward0": "the gradients of CLS and patches, joined again",
    "ViewBackward0": "the patch embedding's gradient, cut out from behind CLS",
    "aten::addmm": "inside PyTorch's product: the bias, written to the result before the product is added",
    "aten::_to_copy": "autocast's conversion between float32 and bfloat16",
}


@pytest.fixture
def named(monkeypatch):
    """What of the model copies, by name in the profile."""

    def name_it(owner: object, name: str) -> None:
        function = getattr(owner, name)

        def wrapped(*arguments):
            with record_function(name):
                return function(*arguments)

        monkeypatch.setattr(owner, name, wrapped)

    name_it(reference.Attention, "qkv_bias")
    name_it(reference.HSTA, "classify")
    name_it(hsta, "tubelets")
    name_it(hsta, "_join")


def copies(run: Callable[[], None]) -> Counter[str]:
    """How often `run` copies an activation, by the name of what it is part of."""
    run()  # whatever is done once
    with profile(record_shapes=True) as recorded:
        run()
    found: Counter[str] = Counter()
    for event in recorded.events():
        # A list of tensors has no shapes in the profile: concatenations count whatever their size.
        largest = max((torch.Size(shape).numel() for shape in event.input_shapes if shape), default=0)
        if event.name == "aten::cat" or (event.name == "aten::copy_" and largest >= SMALLEST_ACTIVATION):
            names = [parent.split(": ")[-1] for parent in parents(event)]
            if event.name not in names:  # under autocast an operator is in itself
                found[next((name for name in names if name in KNOWN), " < ".join([event.name, *names]))] += 1
    return found


def parents(event) -> Iterator[str]:
    while (event := event.cpu_parent) is not None:
        yield event.name


@pytest.mark.parametrize("autocast", (False, True), ids=("float32", "bfloat16"))
@pytest.mark.parametrize("attention", ("divided", "joint"))
@pytest.mark.parametrize("training", (True, False), ids=("training", "inference"))
def test_copies_of_activations(named, attention, training, autocast):
    config = hsta_kernels.HSTAConfig(
        embed_dim=(96, 192), num_heads=(3, 3), depth=((1, 2),) * BLOCKS, attention=attention
    )
    model = hsta_kernels.HSTA(config).train(training)
    video = torch.randn(BATCH, 3, config.num_frames, config.image_size, config.image_size)
    special = torch.randn(BATCH, 3, 2, config.image_size, config.image_size)

    def run() -> None:
        with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(video, special)
        if training:
            logits.float().sum().backward()

    found = copies(run)
    assert found.keys() <= KNOWN.keys()
    assert found["tubelets"] == BRANCHES and found["_join"] == BRANCHES * (1 + BLOCKS)
    assert found["SplitWithSizesBackward0"] == (BRANCHES * BLOCKS if training else 0)
    assert found["ViewBackward0"] == (BRANCHES if training and not autocast else 0)
    assert bool(found["aten::_to_copy"]) == autocast

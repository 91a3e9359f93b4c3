"""What training keeps for the backward pass."""

from __future__ import annotations

import pytest
import torch

import hsta_kernels
from benchmarks.model import with_sdpa
from hsta_kernels import backends

pytestmark = pytest.mark.skipif(
    backends.unavailable("cpu") is not None, reason="the CPU kernels are not built; the reference saves everything"
)


def saved_bytes(model: torch.nn.Module, autocast: bool) -> int:
    """Bytes that one forward pass keeps for the backward pass, each storage once, without the parameters."""
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    size = model.config.image_size
    inputs = torch.randn(2, 3, model.config.num_frames, size, size), torch.randn(2, 3, 2, size, size)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        logits = model.train()(*inputs)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert logits.requires_grad
    return sum(storage.nbytes() for address, storage in storages.items() if address not in parameters)


@pytest.mark.parametrize("autocast", (False, True), ids=("float32", "bfloat16"))
@pytest.mark.parametrize("attention", ("divided", "joint"))
def test_activations_kept_for_the_backward_pass(attention, autocast):
    config = hsta_kernels.HSTAConfig(embed_dim=(96, 192), num_heads=(3, 3), depth=((2, 4),), attention=attention)
    reference = with_sdpa(hsta_kernels.reference.HSTA(config))
    ours, theirs = saved_bytes(hsta_kernels.HSTA(config), autocast), saved_bytes(reference, autocast)
    assert ours <= 0.7 * theirs, f"{ours / theirs:.2f} of the reference on SDPA"

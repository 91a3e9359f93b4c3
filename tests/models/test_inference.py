from __future__ import annotations

import pytest
import torch

import hsta_kernels
from hsta_kernels.inference import freeze
from tests.tolerances import assert_close_to_reference

SMALL = {"image_size": 48, "num_frames": 4, "embed_dim": (24, 32), "num_heads": (3, 2), "depth": ((1, 2), (1, 1))}


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 4, 48, 48), torch.randn(batch, 3, 2, 48, 48)


def model(**fields) -> hsta_kernels.HSTA:
    made = hsta_kernels.HSTA(hsta_kernels.HSTAConfig(**(SMALL | fields)))
    for parameter in made.parameters():  # biases and norms that are not zeros and ones
        torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.mark.parametrize("packed", (True, False))
@pytest.mark.parametrize("head", ("cls", "cls_last", "mean"))
@pytest.mark.parametrize("attention", ("divided", "joint"))
def test_logits_of_the_frozen_model(attention, head, packed, monkeypatch):
    made, (video, special) = model(attention=attention, head=head), inputs(16)
    oracle = hsta_kernels.reference.HSTA(made.config).eval()
    oracle.load_state_dict(made.state_dict())
    if not packed:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    frozen = freeze(made)
    with torch.no_grad():
        same = oracle(video, special)
        exact = oracle.double()(video.double(), special.double())
    assert_close_to_reference(frozen(video, special), same, exact)


@pytest.mark.parametrize("packed", (True, False))
def test_bfloat16_is_as_exact_as_autocast(packed, monkeypatch):
    made, (video, special) = model().eval(), inputs(16)
    if not packed:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with torch.no_grad():
        exact = made(video, special)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = made(video, special).float()
    ours = freeze(made, torch.bfloat16)(video, special)
    assert ours.dtype == torch.float32
    assert (ours - exact).square().mean() <= 1.5**2 * (autocast - exact).square().mean()
    assert not torch.equal(ours, exact)


def test_freezing_leaves_the_model_alone():
    made, (video, special) = model(drop_rate=0.5).train(), inputs()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    frozen = freeze(made, torch.bfloat16)
    assert made.training and all(p.requires_grad for p in made.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    first = frozen(video, special)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert torch.equal(frozen(video, special), first)  # nothing is shared, nothing is dropped
    assert not first.requires_grad


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match=r"model must be an hsta_kernels\.HSTA, got Linear"):
        freeze(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"dtype must be torch\.float32 or torch\.bfloat16"):
        freeze(model(), torch.float16)
    video, special = inputs()
    with pytest.raises(ValueError, match="special must have shape"):
        freeze(model())(video, special[:, :, :1])

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn.utils import prune

import hsta_kernels
from hsta_kernels import inference
from hsta_kernels.inference import FrozenLinear, freeze
from hsta_kernels.products import PRODUCTS, Int8, Linear, OneDNN, Packed
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
    for batch_size in (0, -1, 1.0, True, None):
        with pytest.raises(ValueError, match=rf"batch_size must be a positive integer, got {batch_size}"):
            freeze(model(), batch_size=batch_size)
    with pytest.raises(ValueError, match="special must have shape"):
        freeze(model())(video, special[:, :, :1])


def oracle(made: hsta_kernels.HSTA) -> torch.nn.Module:
    return copy.deepcopy(made).eval()


def test_a_parent_does_not_wake_it():
    parent = torch.nn.Module()
    parent.frozen = freeze(model(drop_rate=0.3, attn_drop_rate=0.2, drop_path_rate=0.2, head_drop_rate=0.4))
    parent.train()
    video, special = inputs()
    assert torch.equal(parent.frozen(video, special), parent.frozen(video, special))
    assert not any(module.training for module in parent.frozen.modules())
    parent.frozen.model.train()  # nothing is left to drop
    assert torch.equal(parent.frozen(video, special), parent.frozen(video, special))


@pytest.mark.parametrize(
    "options",
    ({}, {"dtype": torch.bfloat16}, {"weights": torch.bfloat16}, {"weights": torch.int8}),
    ids=str,
)
def test_copied_pickled_moved_saved(options):
    made, (video, special) = model(), inputs()
    frozen = freeze(made, **options)
    expected = frozen(video, special)
    moved = copy.deepcopy(frozen).to("meta")
    assert all(t.is_meta for t in (*moved.buffers(), *moved.parameters(), *moved.state_dict().values()))
    for other in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen).to("cpu")):
        assert torch.equal(other(video, special), expected)
    other = freeze(model(), **options)
    assert not torch.equal(other(video, special), expected)
    other.load_state_dict(frozen.state_dict())
    assert torch.equal(other(video, special), expected)
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.weight"):
        other.load_state_dict({name: t for name, t in frozen.state_dict().items() if name != "model.head.weight"})


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64), ids=str)
def test_models_of_other_dtypes(dtype):
    made, (video, special) = model().to(dtype), inputs()
    expected = oracle(made).float()(video, special)
    torch.testing.assert_close(freeze(made)(video, special), expected, rtol=1e-4, atol=1e-4)
    assert freeze(made)(video.to(dtype), special.to(dtype)).dtype == torch.float32
    assert next(made.parameters()).dtype == dtype


class Adapter(torch.nn.Module):
    """Reads its layer's weight, which must not be packed."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.linear, self.drop = linear, torch.nn.Dropout(0.5)
        self.extra = torch.nn.Parameter(torch.ones(linear.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(torch.nn.functional.linear(x, self.linear.weight, self.linear.bias)) + self.extra


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize(
    "name", ("attn.qkv", "attn.proj", "attn_time.qkv", "mlp.fc1", "mlp.fc2", "fusion", "head", "patch_embed")
)
def test_what_is_not_plain_is_kept(name, dtype):
    made, (video, special) = model(), inputs(8)
    if name == "head":
        made.head = torch.nn.Sequential(torch.nn.LayerNorm(56), torch.nn.Linear(56, 4))
    elif name == "fusion":
        made.blocks[0].fusion[0].attn.wk = Adapter(made.blocks[0].fusion[0].attn.wk)
    elif name == "patch_embed":
        prune.l1_unstructured(made.patch_embed[1].proj, "weight", 0.5)
        with torch.no_grad():
            made(video, special)
    else:
        owner, leaf = name.split(".")
        owner = getattr(made.blocks[0].blocks[1][0], owner)
        setattr(owner, leaf, Adapter(getattr(owner, leaf)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = oracle(made)(video, special).float()
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    scale = expected.abs().max().item()
    torch.testing.assert_close(freeze(made, dtype)(video, special), expected, rtol=0, atol=tolerance * scale)


def test_identity_head():
    made, (video, special) = model(), inputs()
    made.head = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(freeze(made)(video, special), oracle(made)(video, special), rtol=1e-4, atol=1e-4)


def test_hooks_run_in_the_copy():
    made, (video, special) = model(), inputs()
    names = {name for name, module in made.named_modules() if not list(module.children()) and name}
    ran = set()
    for name in names - {"cls_token"}:
        made.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.add(name))
    freeze(made)(video, special)
    assert ran == names - {"cls_token"}


def test_what_cannot_be_copied_is_named():
    made, (video, special) = model(), inputs()
    prune.l1_unstructured(made.blocks[0].blocks[1][0].mlp.fc1, "weight", 0.5)
    made(video, special)
    with pytest.raises(ValueError, match=r"cannot be frozen: blocks\.0\.blocks\.1\.0\.mlp\.fc1\.weight was computed"):
        freeze(made)
    with torch.no_grad():
        made(video, special)
    torch.testing.assert_close(freeze(made)(video, special), oracle(made)(video, special), rtol=1e-4, atol=1e-4)


def linears(frozen: inference.FrozenHSTA) -> list[FrozenLinear]:
    return [module for module in frozen.modules() if isinstance(module, FrozenLinear)]


@pytest.fixture
def chosen(request, monkeypatch):
    """Every layer takes this product where it can."""

    def take(weight, bias, activation, rows):
        return request.param if PRODUCTS[request.param].runs(weight, activation) else "linear"

    monkeypatch.setattr(inference, "Fastest", lambda: take)
    return request.param


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("chosen", PRODUCTS, indirect=True)
def test_copies_keep_the_products(chosen, dtype):
    made, (video, special) = model(), inputs()
    frozen = freeze(made, dtype, batch_size=2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        reference = oracle(made)(video, special).float()
    expected = frozen(video, special)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(expected, reference, rtol=0, atol=tolerance * reference.abs().max().item())
    moved = copy.deepcopy(frozen).to("meta")
    assert {type(layer.product) for layer in linears(moved)} == {Linear}
    back = moved.to_empty(device="cpu")
    back.load_state_dict(frozen.state_dict())
    with torch.no_grad():  # what is in no state dict
        for buffer, value in zip(back.buffers(), frozen.buffers(), strict=True):
            buffer.copy_(value)
    for other in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen).to("cpu"), back):
        assert [type(layer.product) for layer in linears(other)] == [type(layer.product) for layer in linears(frozen)]
        assert torch.equal(other(video, special), expected)
    fewer = freeze(made, dtype)  # for one clip
    torch.testing.assert_close(fewer(video, special), reference, rtol=0, atol=tolerance * reference.abs().max().item())


@pytest.mark.skipif(not Int8.runs(torch.ones(1), "none"), reason="this PyTorch has no oneDNN")
def test_int8(monkeypatch):
    made, (video, special) = model(), inputs(8)
    frozen = freeze(made, int8=True)
    assert {type(layer.product) for layer in linears(frozen)} == {Int8}
    expected = frozen(video, special)
    with torch.no_grad():
        reference = oracle(made)(video, special)
    error = (expected - reference).square().mean() / reference.square().mean()
    assert 0 < error < 0.05**2  # of each of seven layers in a row, 1 or 2 %
    assert torch.equal(frozen(video[3:4], special[3:4]), expected[3:4])
    other = freeze(model(), int8=True)
    other.load_state_dict(frozen.state_dict())
    for same in (other, copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen).to("cpu")):
        assert torch.equal(same(video, special), expected)
    with pytest.raises(ValueError, match=r"int8 goes with dtype torch\.float32, got torch\.bfloat16"):
        freeze(made, torch.bfloat16, int8=True)
    with pytest.raises(ValueError, match=r"int8 needs a model on a processor.*; the model is on meta"):
        freeze(made.to("meta"), int8=True)


@pytest.mark.parametrize(("weights", "bound"), ((torch.bfloat16, 0.005), (torch.int8, 0.02)), ids=str)
def test_weights_kept_for_their_memory(weights, bound, monkeypatch):
    monkeypatch.setattr(inference, "Fastest", lambda: pytest.fail("measured"))
    made, (video, special) = model(), inputs(8)
    frozen = freeze(made, weights=weights)
    assert {layer.product.weight.dtype for layer in linears(frozen)} == {weights}
    with torch.no_grad():
        reference = oracle(made)(video, special)
    error = (frozen(video, special) - reference).square().mean() / reference.square().mean()
    assert 0 < error < bound**2


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"weights": torch.float16}, r"weights must be torch\.bfloat16 or torch\.int8, got torch\.float16"),
        ({"weights": torch.int8, "int8": True}, r"weights=torch\.int8 goes with products in float32, not with int8"),
        ({"weights": torch.int8, "dtype": torch.bfloat16}, r"in float32, not with dtype torch\.bfloat16"),
    ),
    ids=str,
)
def test_weights_that_do_not_go(options, message):
    with pytest.raises(ValueError, match=message):
        freeze(model(), **options)


@pytest.mark.parametrize("chosen", ("onednn", "mkl", "packed"), indirect=True)
def test_a_pickle_is_read_where_its_products_do_not_run(chosen, monkeypatch):
    made, (video, special) = model(), inputs()
    pickled = pickle.dumps(freeze(made, batch_size=2))
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(Packed, "runs", staticmethod(lambda weight, activation: False))
    other = pickle.loads(pickled)
    assert {type(layer.product) for layer in linears(other)} == {Linear}
    with torch.no_grad():
        torch.testing.assert_close(other(video, special), oracle(made)(video, special), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ("divided", "joint"))
def test_products_are_chosen_for_the_rows_of_a_call(attention, monkeypatch):
    asked, called = [], []

    def take(weight, bias, activation, rows):
        asked.append((rows, *weight.shape, activation))
        return "linear"

    monkeypatch.setattr(inference, "Fastest", lambda: take)
    frozen = freeze(model(attention=attention), batch_size=3)
    for layer in linears(frozen):
        layer.register_forward_pre_hook(
            lambda layer, x: called.append((x[0].shape[:-1].numel(), *layer.product.unpacked().shape, layer.activation))
        )
    frozen(*inputs(3))
    assert sorted(called) == sorted(asked)
    assert {type(layer.product) for layer in linears(frozen)} == {Linear}


def test_without_a_measurement_products_are_onednns(monkeypatch):
    monkeypatch.setattr(inference, "Fastest", lambda: pytest.fail("measured"))
    packed = OneDNN if torch.backends.mkldnn.is_available() else Linear
    assert {type(layer.product) for layer in linears(freeze(model(), measure=False))} == {packed}


@pytest.mark.parametrize("chosen", ("linear", "onednn"), indirect=True)
def test_an_autocast_around_the_call_does_not_reach_it(chosen):
    frozen, (video, special) = freeze(model()), inputs()
    expected = frozen(video, special)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(frozen(video, special), expected)

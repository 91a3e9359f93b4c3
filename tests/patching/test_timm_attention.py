"""ViTs of timm, patched: the results, gradients and manners of the original."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hsta_kernels
from hsta_kernels.ops.space_time_attention import autograd
from tests.patching.patched import assert_same_results, results, trained

MISSING = "timm is not beside torchvision here; `make test` installs both in build/timm, for test_versions.py"
try:
    pytest.importorskip("torchvision", reason=MISSING)
except RuntimeError:
    # torchvision's wheel for Linux loads its operators with PyTorch's build for GPUs alone. timm calls none of them,
    # but torchvision does not import before these two are declared.
    DECLARED = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        DECLARED.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
timm = pytest.importorskip("timm", reason=MISSING)
FRAMES = 2


class OfFrames(nn.Module):
    """A ViT on each frame, called as models of video are."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.vit = timm.models.VisionTransformer(
            img_size=24, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5, **settings
        )

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        frames = self.vit(pixel_values.flatten(0, 1))
        return SimpleNamespace(logits=frames.unflatten(0, (-1, FRAMES)).mean(1))


def tiny(**settings) -> nn.Module:
    torch.manual_seed(0)
    return trained(OfFrames(**settings))


def patched(original: nn.Module) -> nn.Module:
    model = copy.deepcopy(original)
    hsta_kernels.patch(model)
    return model


def clip(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, FRAMES, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def kernel_calls(monkeypatch) -> list:
    calls, apply = [], autograd.SpaceTimeAttention.apply
    monkeypatch.setattr(autograd.SpaceTimeAttention, "apply", lambda *a: (calls.append(a), apply(*a))[1])
    return calls


@pytest.fixture
def original_calls(monkeypatch) -> list:
    kind, calls = timm.layers.Attention, []
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda *a, **more: (calls.append(a), forward(*a, **more))[1])
    return calls


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"qk_norm": True, "scale_attn_norm": True}], ids=["plain", "norms"])
def test_results_and_gradients_are_those_of_the_original(settings, dtype, training, kernel_calls):
    original = tiny(**settings).train(training)
    model = copy.deepcopy(original)
    report = hsta_kernels.patch(model)
    assert report.replaced == ["vit.blocks.0.attn", "vit.blocks.1.attn"] and not report.left
    model(clip())
    assert len(kernel_calls) == 2
    assert_same_results(model, original, lambda seed: {"pixel_values": clip(seed)}, dtype)


def test_queries_keys_and_values_are_read_where_they_are(kernel_calls):
    model, projected = patched(tiny()), []
    model.vit.blocks[0].attn.qkv.register_forward_hook(lambda *a: projected.append(a[2]))
    model(clip())
    *_, packed = kernel_calls[0]
    assert packed.shape == (2 * FRAMES, 10, 3, 3, 16) and packed.data_ptr() == projected[0].data_ptr()


@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}], ids=["plain", "norms"])
def test_attention_that_is_not_fused_is_the_same(settings):
    original = tiny(**settings)
    for block in original.vit.blocks:
        block.attn.fused_attn = False
        block.attn.scale *= 2  # which fused attention does not look at
    assert_same_results(patched(original), original, lambda seed: {"pixel_values": clip(seed)}, torch.float32)
    for block in original.vit.blocks:
        block.attn.fused_attn = True
    assert_same_results(patched(original), original, lambda seed: {"pixel_values": clip(seed)}, torch.float32)


@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}], ids=["plain", "norms"])
def test_inference_autocast_and_the_compiler(settings):
    original, video = tiny(**settings), clip()
    model = patched(original)
    with torch.inference_mode():
        expected = original(video).logits
        torch.testing.assert_close(model(video).logits, expected)
    with torch.no_grad():
        compiled = torch.compile(model.vit, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(video[0]), original.vit(video[0]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed, theirs = model(video).logits, original(video).logits
        assert mixed.dtype == theirs.dtype == torch.bfloat16
        assert (mixed - expected).norm() < 2 * (theirs - expected).norm()


def test_autocast_where_a_norm_gives_float32():
    """As PyTorch's own do on a GPU."""
    original, video = tiny(qk_norm=True), clip()
    for block in original.vit.blocks:
        block.attn.q_norm.register_forward_hook(lambda *a: a[2].float())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = original(video).logits, patched(original)(video).logits
    torch.testing.assert_close(found, expected, atol=0.02 * float(expected.norm()), rtol=0)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = patched(tiny()).train()
    expected = results(model, {"pixel_values": clip()})
    model.vit.set_grad_checkpointing()
    for name, grad in results(model, {"pixel_values": clip()}).items():
        assert torch.equal(grad, expected[name]), name


def test_weights_names_and_hooks_are_left_alone(original_calls):
    model, video, called = tiny(), clip(), []
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    classes = [type(module).__name__ for module in model.modules()]
    attention = model.vit.blocks[1].attn
    for module in attention.modules():
        module.register_forward_hook(lambda module, *_: called.append(module))
    expected = model(video).logits
    theirs = list(called)
    hsta_kernels.patch(model)
    called.clear(), original_calls.clear()
    torch.testing.assert_close(model(video).logits, expected)
    assert called == theirs and not original_calls
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert [type(module).__name__ for module in model.modules()] == classes
    hsta_kernels.patch(model)  # twice is once
    hsta_kernels.unpatch(model)
    hsta_kernels.unpatch(model)
    assert type(attention) is timm.layers.Attention
    assert torch.equal(model(video).logits, expected) and len(original_calls) == 2


def test_dropout_of_probabilities_is_the_kernels(kernel_calls):
    """Drawn by PyTorch's generator, and the reference's with the same seed; nothing drops in evaluation."""
    original = tiny(attn_drop_rate=0.4, proj_drop_rate=0.3)
    model = patched(original.train())
    logits = []
    for backend in ("auto", "reference", "auto"):
        torch.manual_seed(3 if len(logits) < 2 else 4)
        with hsta_kernels.backend(backend):
            logits.append(model(clip()).logits)
    assert len(kernel_calls) == 4  # two layers each, but not of the reference
    torch.testing.assert_close(*logits[:2], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(*logits[1:], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.eval()(clip()).logits, original.eval()(clip()).logits)


@pytest.mark.parametrize(
    "more",
    [{"attn_mask": torch.ones(10, 10).tril().bool()}, {"is_causal": True}],
    ids=lambda more: next(iter(more)),
)
def test_a_mask_is_the_originals(more, kernel_calls):
    name, value = next(iter(more.items()))
    original, x = tiny().vit.blocks[0].attn, torch.randn(2, 10, 48)
    attention = patched(original)
    assert torch.equal(attention(x, **{name: value}), original(x, **{name: value}))
    assert torch.equal(attention(x, value if name == "attn_mask" else None, name == "is_causal"), original(x, **more))
    assert not kernel_calls
    torch.testing.assert_close(attention(x, attn_mask=None, is_causal=False), original(x))
    assert len(kernel_calls) == 1


def test_where_there_are_no_kernels_the_original_runs(original_calls):
    patched(tiny().double())(clip().double())
    assert len(original_calls) == 2


@pytest.mark.parametrize("method", ["hook", "fx"])
def test_attention_probabilities_are_those_of_the_original(method):
    from timm.utils import AttentionExtract

    original = tiny().vit
    for block in original.blocks:
        block.attn.fused_attn = False
    model, frames = patched(original), clip()[0]
    expected = AttentionExtract(original, method=method)(frames)
    found = AttentionExtract(model, method=method)(frames)
    assert list(found) == list(expected) and len(found) == 2
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_a_trace_and_onnx_have_the_originals(original_calls, monkeypatch):
    model, frames = patched(tiny()).vit, clip()[0]
    expected = model(frames)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing is deprecated, and makes shapes constant
        traced = torch.jit.trace(model, frames, check_trace=False)
    assert str(traced.inlined_graph).count("aten::scaled_dot_product_attention") == 2
    torch.testing.assert_close(traced(frames), expected)
    assert len(original_calls) == 2
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    torch.testing.assert_close(model(frames), expected)
    assert len(original_calls) == 4


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_a_script_is_refused_before_it_is_unpatched():
    model, frames = patched(tiny()).vit, clip()[0]
    with pytest.raises(RuntimeError, match=r"a patched model; hsta_kernels.unpatch\(model\) comes first"):
        torch.jit.script(model)
    hsta_kernels.unpatch(model)
    torch.testing.assert_close(torch.jit.script(model)(frames), model(frames))


def test_what_is_not_replaced_is_said():
    class Tempered(timm.layers.Attention):
        pass

    model = nn.ModuleDict(
        {
            "plain": timm.layers.Attention(48, num_heads=3),
            "gated": timm.layers.Attention(48, num_heads=3, gated=True),
            "derived": Tempered(48, num_heads=3),
            "rope": timm.layers.AttentionRope(48, num_heads=3),
            "changed": timm.layers.Attention(48, num_heads=3),
        }
    )
    model["changed"].forward = lambda x: x
    report = hsta_kernels.patch(model)
    assert report.replaced == ["plain"]
    assert report.left == {
        "gated": "it has gate, which timm.layers.Attention does not have by default",
        "derived": f"it is a {__name__}.Tempered; timm.layers.Attention is replaced",
        "rope": "it is a timm.layers.attention.AttentionRope; timm.layers.Attention is replaced",
        "changed": "somebody has given it a forward of its own",
    }
    with pytest.raises(ValueError, match=r"has no module that is known here: .* and timm.layers.Attention"):
        hsta_kernels.patch(nn.Linear(2, 2))


def test_a_patched_model_is_copied_and_loaded():
    model, video = patched(tiny()), clip()
    again = tiny()
    again.load_state_dict(model.state_dict())
    assert type(again.vit.blocks[0].attn) is timm.layers.Attention
    for other in (copy.deepcopy(model), patched(again)):
        assert torch.equal(other(video).logits, model(video).logits)

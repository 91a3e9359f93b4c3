"""V-JEPA 2 of transformers, patched: its rotary embedding in the kernels, by tables that all of its layers share."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import hsta_kernels
from hsta_kernels.ops.space_time_attention import autograd
from hsta_kernels.ops.space_time_attention.rotary import rotated
from tests.models.parity import assert_results_agree, stack
from tests.patching.patched import MISSING, assert_same_results, results, trained

transformers = pytest.importorskip("transformers", reason=MISSING)

from transformers.models.vjepa2 import modeling_vjepa2 as theirs  # noqa: E402

from hsta_kernels.patching import vjepa2 as ours  # noqa: E402

HALVES = (torch.bfloat16, torch.float16)
HAS_HEAD_MASKS = ours._NO_WEIGHTS == ()


def tiny(hidden_size: int = 48, kind: str = "VJEPA2ForVideoClassification", **settings) -> nn.Module:
    """Three heads: of 16 channels, 12 of which rotate, or of 12 or 15."""
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(
        crop_size=24, frames_per_clip=4, num_pooler_layers=1, mlp_ratio=2, patch_size=8, num_hidden_layers=2,
        num_attention_heads=3, hidden_size=hidden_size, pred_hidden_size=48, pred_num_attention_heads=3,
        pred_num_hidden_layers=1, attn_implementation="sdpa", **settings,
    )  # fmt: skip
    return trained(getattr(transformers, kind)(config))


def patched(original: nn.Module) -> nn.Module:
    model = copy.deepcopy(original)
    hsta_kernels.patch(model)
    return model


def clip(seed: int = 0, frames: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values_videos": torch.randn(2, frames, 3, 24, 24, generator=generator)}


def first_attention(model: nn.Module) -> theirs.VJEPA2RopeAttention:
    return next(module for module in model.modules() if isinstance(module, theirs.VJEPA2RopeAttention))


@pytest.fixture(autouse=True)
def no_tables_of_before():
    ours._tables.clear()


@pytest.fixture
def rotating(monkeypatch) -> list[bool]:
    """Of each call of the kernels, whether they rotate."""
    calls, apply = [], autograd.SpaceTimeAttention.apply

    def counted(grid, *rest):
        calls.append(grid.rotary_pairs == "interleaved")
        return apply(grid, *rest)

    monkeypatch.setattr(autograd.SpaceTimeAttention, "apply", counted)
    return calls


@pytest.fixture
def original_calls(monkeypatch) -> list:
    calls, forward = [], theirs.VJEPA2RopeAttention.forward
    monkeypatch.setattr(
        theirs.VJEPA2RopeAttention, "forward", lambda *a, **more: (calls.append(a), forward(*a, **more))[1]
    )
    return calls


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden_size", [36, 48])
def test_results_and_gradients_are_those_of_the_original(hidden_size, dtype, training, rotating, original_calls):
    original = tiny(hidden_size).train(training)
    model = copy.deepcopy(original)
    report = hsta_kernels.patch(model)
    assert [name for name in report.replaced if "encoder" in name and "attention" in name] == [
        "vjepa2.encoder.layer.0.attention",
        "vjepa2.encoder.layer.1.attention",
    ]
    model(**clip())
    assert rotating == [True, True, False] and not original_calls  # the last is the pooler's
    assert_same_results(model, original, clip, dtype)


def test_results_and_gradients_under_autocast():
    original = tiny()
    model, exact = patched(original), copy.deepcopy(original).double()
    draws = [[], [], []]
    for seed in range(8):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            draws[0].append(results(model, clip(seed)))
            draws[1].append(results(original, clip(seed)))
        draws[2].append(results(exact, {name: video.double() for name, video in clip(seed).items()}))
    assert_results_agree(*map(stack, draws))


@pytest.mark.parametrize(("hidden_size", "length"), [(36, 18), (48, 18), (48, 45)], ids=("all", "some", "longer"))
def test_the_tables_are_the_angles_of_the_original(hidden_size, length):
    attention = first_attention(patched(tiny(hidden_size)))
    tokens, q = torch.zeros(2, length, hidden_size), torch.randn(2, length, 3, hidden_size // 3)
    expected = attention.apply_rotary_embeddings(q.transpose(1, 2), attention.get_position_ids(tokens))
    assert torch.equal(rotated(q, attention._rotary(tokens), "interleaved").transpose(1, 2), expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_of_halves_the_angles_are_nearer_to_exact_ones_than_the_originals(dtype):
    attention = first_attention(patched(tiny()))
    tokens, q = torch.zeros(1, 45, 48), torch.randn(1, 45, 3, 16).to(dtype)
    places = attention.get_position_ids(tokens)
    exact = attention.apply_rotary_embeddings(q.double().transpose(1, 2), places).transpose(1, 2)
    found = rotated(q, attention._rotary(tokens.to(dtype)), "interleaved")
    original = attention.apply_rotary_embeddings(q.transpose(1, 2), places).transpose(1, 2)
    rounding = (exact.to(dtype) - exact).norm()
    assert original.dtype == found.dtype == dtype
    assert (found - exact).norm() < 1.001 * rounding and (original - exact).norm() > 1.3 * rounding


def test_clips_of_other_lengths_and_layers_share_tables_of_which_few_are_kept():
    original = tiny()
    model = patched(original)
    for frames in (2, 4, 6, 8, 10, 12):
        video = clip(frames=frames)
        torch.testing.assert_close(model(**video).logits, original(**video).logits)
        assert 1 <= len(ours._tables) <= ours._MOST_TABLES
    (key, (cos, _)) = list(ours._tables.items())[-1]
    model(**video)
    assert ours._tables[key][0] is cos and cos.shape == (6 * 9, 16)


def test_tables_are_no_part_of_a_model():
    """Its copies and state dict have none, and casting it leaves them float32."""
    model = patched(tiny())
    names, expected = set(tiny().state_dict()), model(**clip()).logits
    assert set(model.state_dict()) == names and set(dict(model.named_buffers())) == set(dict(tiny().named_buffers()))
    assert torch.equal(copy.deepcopy(model)(**clip()).logits, expected)
    half = copy.deepcopy(model).to(torch.bfloat16)
    half(**clip())
    assert all(table.dtype == torch.float32 for tables in ours._tables.values() for table in tables)
    assert torch.equal(model(**clip()).logits, expected)


def test_training_after_inference_mode():
    model = patched(tiny())
    with torch.inference_mode():
        model(**clip())
    model.train()(**clip()).logits.sum().backward()
    assert first_attention(model).query.weight.grad.norm() > 0


def test_the_compiler_sees_one_graph_also_of_training():
    original = tiny()
    model = patched(original)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**clip()).logits, original(**clip()).logits)
    assert not ours._tables, "what is traced is no table"
    expected = results(model, clip())
    for name, result in results(compiled, clip()).items():
        torch.testing.assert_close(result, expected[name.removeprefix("_orig_mod.")], atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = patched(tiny()).train()
    expected = results(model, clip())
    model.gradient_checkpointing_enable()
    for name, grad in results(model, clip()).items():
        assert torch.equal(grad, expected[name]), name


def test_whoever_looks_at_the_operations_leaves_no_table_behind(original_calls):
    """Transforms see the original, and fake tensors are nobody's numbers."""
    model = patched(tiny())
    parameters = dict(model.named_parameters())
    gradients = torch.func.grad(lambda p: torch.func.functional_call(model, p, (), clip()).logits.sum())(parameters)
    assert len(original_calls) == 2 and not ours._tables
    model(**clip()).logits.sum().backward()
    for name in ("query.weight", "value.bias"):
        name = f"vjepa2.encoder.layer.0.attention.{name}"
        torch.testing.assert_close(parameters[name].grad, gradients[name], atol=1e-5, rtol=1e-4)
    ours._tables.clear()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(**{name: mode.from_tensor(video) for name, video in clip().items()})
    assert not ours._tables


def test_positions_that_each_sample_has_of_its_own(original_calls):
    """Those of the predictor, which go the way they went."""
    original = tiny(kind="VJEPA2Model")
    model = patched(original)
    draw = [torch.randperm(18, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    masks = {"context_mask": [torch.stack([d[:7] for d in draw])], "target_mask": [torch.stack([d[7:] for d in draw])]}
    expected = original(**clip(), **masks).predictor_output.last_hidden_state
    original_calls.clear()
    torch.testing.assert_close(model(**clip(), **masks).predictor_output.last_hidden_state, expected)
    assert len(original_calls) == 1


@pytest.mark.skipif(not HAS_HEAD_MASKS, reason="transformers 5 has no head masks; test_versions.py runs this with 4.57")
def test_head_masks_and_weights_go_the_way_they_went(original_calls):
    attention, tokens = first_attention(patched(tiny())), torch.randn(2, 18, 48)
    expected = attention(tokens)
    assert len(expected) == 1 and not original_calls
    torch.testing.assert_close(attention(tokens, head_mask=torch.zeros(18, 18))[0], expected[0])
    assert len(attention(tokens, output_attentions=True)) == 2
    assert len(original_calls) == 2


@pytest.mark.parametrize("why", ["float64", "odd heads", "another choice"])
def test_where_no_kernel_rotates_the_original_does(why, original_calls, rotating):
    model = patched(tiny(45 if why == "odd heads" else 48))
    video = clip()
    if why == "float64":
        model, video = model.double(), {name: video.double() for name, video in video.items()}
    if why == "another choice":
        model.set_attn_implementation("eager")
    assert model(**video).logits.isfinite().all()
    assert len(original_calls) == 2 and not any(rotating)


def test_unpatched_it_is_the_original():
    original = tiny()
    model, expected = patched(original), original(**clip()).logits
    assert all(type(m).__name__ == type(o).__name__ for m, o in zip(model.modules(), original.modules(), strict=True))
    hsta_kernels.patch(model)  # twice is once
    hsta_kernels.unpatch(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in original.modules()]
    assert torch.equal(model(**clip()).logits, expected)

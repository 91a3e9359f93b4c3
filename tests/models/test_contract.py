"""What people do to modules of torch holds for the fused model as it does for the reference.

The fused model reads weights instead of calling the modules that hold them. Each test attaches something to a module
that only a call brings about, to the fused model and to the reference alike, and compares.
"""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from hsta_kernels import HSTA, HSTAConfig, reference
from tests.models.parity import make_inputs, same_model, small_config, trained_reference

KINDS = pytest.mark.parametrize("kind", [HSTA, reference.HSTA], ids=["fused", "reference"])
DROPS = {"drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.2, "head_drop_rate": 0.2}


def config(**fields) -> HSTAConfig:
    return small_config(**{"depth": ((1, 2),), "num_frames": 4, **fields})


def pair(**fields) -> tuple[HSTA, reference.HSTA]:
    """A fused and a reference model with the same weights."""
    model = trained_reference(config(**fields))
    return same_model(HSTA, model), model


def gradients(model: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(*inputs)
    logits.float().square().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_training(ours: nn.Module, theirs: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
    """Logits and every gradient agree, and every parameter has one."""
    (logits, grads), (expected, expected_grads) = gradients(ours, inputs), gradients(theirs, inputs)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        tolerance = 1e-3 * expected_grads[name].abs().max().item() + 1e-5
        torch.testing.assert_close(
            grad, expected_grads[name], rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


def called(model: reference.HSTA) -> dict[str, nn.Module]:
    """Every module of the model that has a call: all but lists and the class tokens."""
    silent = (nn.ModuleList, reference.ClassTokens)
    return {name: module for name, module in model.named_modules() if not isinstance(module, silent)}


def linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


# --- hooks


@KINDS
@pytest.mark.parametrize("grad", (True, False))
@pytest.mark.parametrize("register", ("register_forward_hook", "register_forward_pre_hook"))
def test_forward_hooks_run_on_every_module(kind, register, grad):
    model = kind(config()).eval()
    inputs = make_inputs(model.config)
    with torch.set_grad_enabled(grad):
        expected = model(*inputs)
        for name, module in called(model).items():  # one at a time: all others stay plain
            ran = []
            handle = getattr(module, register)(lambda *_, ran=ran: ran.append(1))
            torch.testing.assert_close(model(*inputs), expected, rtol=1e-4, atol=1e-5)
            handle.remove()
            # A dropout may stand in two places of an MLP.
            assert ran, f"{name}: no hook ran"


@KINDS
@pytest.mark.parametrize("register", ("register_full_backward_hook", "register_full_backward_pre_hook"))
def test_backward_hooks_run_on_every_module(kind, register):
    model = kind(config()).eval()
    inputs = tuple(x.requires_grad_() for x in make_inputs(model.config))
    for name, module in called(model).items():
        seen: list[tuple] = []
        handle = getattr(module, register)(lambda _, *grads, seen=seen: seen.append(grads))
        model(*inputs).sum().backward()
        handle.remove()
        assert seen, f"{name}: no hook ran"
        for grads in seen[0]:
            assert any(grad is not None for grad in grads), f"{name}: a hook without gradients"


def test_a_hook_changes_what_the_reference_changes():
    """Outputs that a hook replaces are those that count."""
    for name in linears(reference.HSTA(config())):
        models = pair()
        for model in models:
            model.get_submodule(name).register_forward_hook(lambda _, args, out: 1.5 * out + 0.1)
        assert_same_training(*models, make_inputs(models[0].config))


@KINDS
def test_hooks_on_all_modules_at_once(kind):
    model = kind(config()).eval()
    seen = set()
    handle = torch_module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        model(*make_inputs(model.config))
    finally:
        handle.remove()
    assert seen == set(called(model).values())


# --- what takes the place of a layer


class LoRA(nn.Module):
    """A low-rank adapter around a linear layer (arXiv 2106.09685), neither of whose factors is zero."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        generator = torch.Generator().manual_seed(5)
        self.down = nn.Parameter(torch.randn(2, linear.in_features, generator=generator) * 0.1)
        self.up = nn.Parameter(torch.randn(linear.out_features, 2, generator=generator) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + F.linear(F.linear(x, self.down), self.up)


def replace(model: nn.Module, name: str, make: Callable[[nn.Module], nn.Module]) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, make(model.get_submodule(name)))


@pytest.mark.parametrize("name", linears(reference.HSTA(config())))
def test_adapters_in_place_of_any_linear_layer(name):
    models = pair()
    for model in models:
        replace(model, name, LoRA)
    inputs = make_inputs(models[0].config)
    assert_same_training(*models, inputs)
    assert models[0].get_parameter(f"{name}.up").grad.any()
    with torch.no_grad():
        without = models[0].eval()(*inputs)
    torch.testing.assert_close(without, models[0](*inputs), rtol=1e-4, atol=1e-5)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


REPARAMETRIZATIONS: dict[str, Callable[[nn.Module], object]] = {
    "prune": lambda module: prune.l1_unstructured(module, "weight", 0.5),
    "parametrize": lambda module: parametrize.register_parametrization(module, "weight", Doubled()),
    "parametrize bias": lambda module: parametrize.register_parametrization(module, "bias", Doubled()),
    "weight_norm": lambda module: nn.utils.weight_norm(module),
    "parametrizations.weight_norm": lambda module: parametrizations.weight_norm(module),
    "spectral_norm": lambda module: nn.utils.spectral_norm(module),
    "parametrizations.spectral_norm": lambda module: parametrizations.spectral_norm(module),
}
LAYER, CROSS_MODAL = "blocks.0.blocks.1.0", "blocks.0.fusion.0"
PLACES = (
    *(f"{LAYER}.{leaf}" for leaf in ("attn.qkv", "attn.proj", "attn_time.qkv", "mlp.fc1", "mlp.fc2", "norm1", "norm2")),
    *(f"{CROSS_MODAL}.{leaf}" for leaf in ("attn.wq", "attn.wk", "attn.wv", "attn.proj", "norm1")),
    "patch_embed.1.proj",
    "norm.1",
    "head",
)


NORMS = [change for change in REPARAMETRIZATIONS if change.endswith("norm")]  # of matrices only
BIASED = [name for name in PLACES if not name.endswith("qkv")]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("change", "name"),
    [
        *((change, name) for change in ("prune", "parametrize") for name in PLACES),
        *(("parametrize bias", name) for name in BIASED),
        *((change, name) for change in NORMS for name in PLACES if "norm" not in name),
    ],
)
def test_reparametrized_weights(change, name):
    models = pair()
    for model in models:
        torch.manual_seed(1)  # of spectral norm's first vector
        REPARAMETRIZATIONS[change](model.get_submodule(name))
    inputs = make_inputs(models[0].config)
    for _ in range(2):  # two steps of training
        assert_same_training(*models, inputs)
        with torch.no_grad():
            for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
                theirs -= 0.01 * theirs.grad
                ours.copy_(theirs)


def test_parametrized_biases_of_attention():
    models = pair()
    for model in models:
        for name in ("q_bias", "v_bias"):
            parametrize.register_parametrization(model.get_submodule(f"{LAYER}.attn"), name, Doubled())
    assert_same_training(*models, make_inputs(models[0].config))


@pytest.mark.parametrize(
    "change",
    [
        (f"{LAYER}.attn.qkv", lambda m: nn.Linear(48, 144, bias=True)),
        (f"{LAYER}.mlp.fc1", lambda m: nn.Linear(48, m.out_features, bias=False)),
        (f"{LAYER}.mlp.fc2", lambda m: nn.Linear(m.in_features, 48, bias=False)),
        (f"{LAYER}.norm1", lambda m: nn.LayerNorm(48, bias=False)),
        (f"{LAYER}.norm2", lambda m: nn.LayerNorm(48, elementwise_affine=False)),
        (f"{LAYER}.norm1", lambda m: nn.LayerNorm(48, eps=0.1)),
        (f"{LAYER}.norm2", lambda m: nn.RMSNorm(48)),
        (f"{LAYER}.norm2", lambda m: nn.Identity()),
        (f"{LAYER}.mlp.drop", lambda m: nn.Dropout(1.0)),
        (f"{LAYER}.attn.attn_drop", lambda m: nn.Identity()),
        (f"{CROSS_MODAL}.norm1", lambda m: nn.Identity()),
        (f"{CROSS_MODAL}.attn.wk", lambda m: nn.Linear(48, 48, bias=False)),
        ("norm.0", lambda m: nn.Identity()),
        ("patch_embed.1.proj", lambda m: nn.Conv3d(3, 48, (2, 16, 16), stride=(2, 16, 16), dilation=1, bias=False)),
        ("patch_embed.1.proj", lambda m: nn.Conv3d(3, 48, (2, 15, 15), stride=(2, 16, 16))),
    ],
    ids=lambda change: change[0].rpartition(".")[2],
)
def test_other_layers_of_the_same_or_another_class(change):
    """A layer of PyTorch's own that differs from the model's: another bias, epsilon, kernel or class."""
    name, make = change
    models = pair()
    for model in models:
        torch.manual_seed(2)
        replace(model, name, make)
    assert_same_training(*models, make_inputs(models[0].config))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dynamic_quantization():
    models = [torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear}) for model in pair()]
    inputs = make_inputs(models[0].config)
    with torch.no_grad():
        torch.testing.assert_close(models[0](*inputs), models[1](*inputs), rtol=1e-3, atol=1e-3)


def test_torchao_quantization():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    models = pair(embed_dim=(32, 64), num_heads=(2, 2))  # not every width can be quantized
    for model in models:
        quantize_(model.eval(), Int8WeightOnlyConfig())
    assert type(models[0].blocks[0].blocks[1][0].mlp.fc1) is nn.Linear  # the weight alone is of another class
    inputs = make_inputs(models[0].config)
    with torch.no_grad():
        torch.testing.assert_close(models[0](*inputs), models[1](*inputs), rtol=1e-4, atol=1e-4)


def test_patched_forward_methods():
    models = pair()
    for model in models:
        fc1 = model.get_submodule(f"{LAYER}.mlp.fc1")
        fc1.forward = lambda x, fc1=fc1: 0.5 * F.linear(x, fc1.weight, fc1.bias)
    assert_same_training(*models, make_inputs(models[0].config))


# --- activation checkpointing


def saved_bytes(model: nn.Module, inputs: tuple[Tensor, Tensor]) -> int:
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(*inputs)
    return total


def is_called(*names: str) -> Callable[[nn.Module], bool]:
    return lambda module: type(module).__name__ in names


@pytest.mark.parametrize("autocast", (False, True), ids=("float32", "bfloat16"))
@pytest.mark.parametrize("reentrant", (False, True), ids=("non-reentrant", "reentrant"))
@pytest.mark.parametrize("of", ("Layer", "Stack", "Block", "CrossModalAttention", "Attention", "MLP"))
def test_activation_checkpointing_gives_the_same_bits(of, reentrant, autocast):
    """Gradients of what is wrapped inside a layer, beside which less is fused, agree up to rounding."""
    model = HSTA(config(depth=((1, 2), (1, 1)), **DROPS)).train()
    wrapped = copy.deepcopy(model)
    apply_activation_checkpointing(
        wrapped,
        checkpoint_wrapper_fn=lambda module: checkpoint_wrapper(
            module, CheckpointImpl.REENTRANT if reentrant else CheckpointImpl.NO_REENTRANT
        ),
        check_fn=is_called(of),
    )
    assert sum(type(module).__name__ == "CheckpointWrapper" for module in wrapped.modules()) >= 2
    inputs = tuple(x.requires_grad_() for x in make_inputs(model.config))
    results = []
    for one in (model, wrapped):
        torch.manual_seed(4)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = one(*inputs)
        one.zero_grad()
        logits.float().square().sum().backward()
        results.append([logits, *(p.grad for p in one.parameters())])
    for ours, expected in zip(*results, strict=True):
        if of in ("Attention", "MLP"):
            tolerance = (0.05 if autocast else 1e-4) * expected.abs().max().item()
            torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)
        else:
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("reentrant", (False, True), ids=("non-reentrant", "reentrant"))
def test_a_checkpoint_around_the_model(reentrant):
    model = HSTA(config(**DROPS)).train()
    inputs = tuple(x.requires_grad_() for x in make_inputs(model.config))
    results = []
    for run in (model, lambda *x: checkpoint(model, *x, use_reentrant=reentrant)):
        torch.manual_seed(4)
        model.zero_grad()
        logits = run(*inputs)
        logits.square().sum().backward()
        results.append([logits, *(p.grad.clone() for p in model.parameters())])
    for ours, expected in zip(*results, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("of", ("Layer", "Block"))
def test_activation_checkpointing_saves_memory_as_in_the_reference(of):
    shares = []
    for model in pair(depth=((1, 2), (1, 2))):
        inputs = make_inputs(model.config, batch=8)
        before = saved_bytes(model, inputs)
        apply_activation_checkpointing(model, check_fn=is_called(of))
        shares.append(saved_bytes(model, inputs) / before)
    assert shares[0] < 0.5 and shares[0] < 2.5 * shares[1], shares


# --- dropout


@pytest.mark.parametrize("backend_name", ("auto", "reference"))
def test_one_mask_with_and_without_gradients(backend_name):
    import hsta_kernels

    model = HSTA(config(**DROPS)).train()
    inputs = make_inputs(model.config)
    results = []
    with hsta_kernels.backend(backend_name):
        for grad in (True, False):
            torch.manual_seed(4)
            with torch.set_grad_enabled(grad):
                results.append(model(*inputs))
    assert torch.equal(*results)


# --- compiling, copying, moving


@pytest.mark.parametrize("whole", (True, False), ids=("stack", "layer"))
def test_compiled_layers(whole):
    torch._dynamo.reset()
    models = pair(depth=((1, 1),))
    for layers in models[0].blocks[0].blocks:
        (layers if whole else layers[0]).compile(fullgraph=True, backend="aot_eager")
    assert_same_training(*models, make_inputs(models[0].config))


@KINDS
def test_copies_and_pickles(kind):
    model = kind(config()).eval()
    inputs = make_inputs(model.config)
    expected = model(*inputs)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).share_memory()):
        assert torch.equal(other(*inputs), expected)
    shared = copy.deepcopy(model).share_memory()
    assert all(t.is_shared() for t in (*shared.parameters(), *shared.buffers()))


@KINDS
def test_replicas_of_data_parallel(kind, monkeypatch):
    """On the CPU: what PyTorch copies between GPUs is copied within its memory."""
    replicate = importlib.import_module("torch.nn.parallel.replicate")  # the package has a function of that name
    monkeypatch.setattr(replicate, "_get_device_index", lambda device, optional: device)
    monkeypatch.setattr(replicate, "_replicatable_module", lambda module: True)

    def copies(tensors, devices, detach=False):
        return [[t.detach() if detach else t * 1 for t in tensors] for _ in devices]

    monkeypatch.setattr(replicate, "_broadcast_coalesced_reshape", copies)
    model = kind(config()).eval()
    inputs = make_inputs(model.config)
    for replica in replicate.replicate(model, [0, 1]):
        logits = replica(*inputs)
        torch.testing.assert_close(logits, model(*inputs), rtol=1e-4, atol=1e-5)
        logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# --- building


@KINDS
@pytest.mark.parametrize("assign", (True, False))
def test_built_on_the_meta_device_then_loaded(kind, assign):
    whole = kind(config()).eval()
    with torch.device("meta"):
        model = kind(config())
    if not assign:
        model = model.to_empty(device="cpu")
        for buffer in model.buffers():
            torch.testing.assert_close(buffer, whole.get_buffer(f"position_{int(buffer.shape[1] == 48)}"))
    model.load_state_dict(whole.state_dict(), assign=assign)
    inputs = make_inputs(whole.config)
    assert torch.equal(model.eval()(*inputs), whole(*inputs))


@KINDS
def test_loaded_as_part_of_a_module_on_the_meta_device(kind):
    whole = nn.Sequential(kind(config())).eval()
    with torch.device("meta"):
        outer = nn.Sequential(kind(config())).eval()
    outer.load_state_dict(whole.state_dict(), assign=True)
    assert not any(t.is_meta for t in (*outer.parameters(), *outer.buffers()))
    inputs = make_inputs(whole[0].config)
    assert torch.equal(outer[0](*inputs), whole[0](*inputs))


@KINDS
@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16), ids=str)
def test_built_under_another_default_dtype(kind, dtype):
    torch.set_default_dtype(dtype)
    try:
        model = kind(config()).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in (*model.parameters(), *model.buffers())} == {dtype}
    logits = model(*make_inputs(model.config, dtype=dtype))
    assert logits.dtype == dtype and logits.isfinite().all()


@KINDS
def test_position_tables_are_exact_after_conversions(kind):
    model = kind(config())
    exact = reference.sinusoid_table(*model.position_1.shape)
    assert torch.equal(model.position_1, exact.float())
    model.bfloat16()
    assert torch.equal(model.position_1, exact.bfloat16())
    model.float()
    assert torch.equal(model.position_1, exact.float())
    model.double()
    assert torch.equal(model.position_1, exact)

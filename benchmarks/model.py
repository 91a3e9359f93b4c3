"""The model, and other ways to run it: the reference, the same on PyTorch's attention, both compiled, exported to other
libraries; and its GEMMs alone."""

from __future__ import annotations

import copy
import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hsta_kernels
from benchmarks import memory
from benchmarks.case import Case, Work, dtypes
from benchmarks.operators.space_time_attention import grouped
from hsta_kernels.models.config import IN_CHANNELS, VIDEO, HSTAConfig

Inputs = tuple[torch.Tensor, torch.Tensor]

LONG = (("num_frames", 16), ("num_frames", 32), ("num_frames", 64), ("image_size", 448))

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


def with_sdpa(model: nn.Module) -> nn.Module:
    """A copy of a reference model whose space-time attention is PyTorch's scaled_dot_product_attention."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "attend") and hasattr(module, "q_bias"):
            module.attend = MethodType(
                lambda _, qkv, grid, axis: grouped(F.scaled_dot_product_attention, qkv, grid, axis, 1), module
            )
    return model


def title(size: dict) -> str:
    """Of a size that may override fields: a longer clip, a larger frame, fewer blocks."""
    return ", ".join([size["name"], *(f"{field} {value}" for field, value in size.items() if field != "name")])


def build(size: dict, attention: str, batch: int, device: torch.device) -> tuple[nn.Module, nn.Module, Inputs]:
    """Our ``create_model(**size)``, the reference model with the same weights, and inputs for both."""
    fused = hsta_kernels.create_model(**size, attention=attention).to(device)
    with torch.no_grad():
        # As they are drawn, every token attends to all others nearly alike: wrong attention would pass for right.
        for name, weight in fused.named_parameters():
            if name.endswith("qkv.weight"):
                weight.mul_(2)
    reference = hsta_kernels.reference.HSTA(fused.config).to(device)
    reference.load_state_dict(fused.state_dict())
    pixels = fused.config.image_size
    video = torch.randn(batch, 3, fused.config.num_frames, pixels, pixels, device=device)
    return fused, reference, (video, torch.randn(batch, 3, 2, pixels, pixels, device=device))


def training_step(module: nn.Module, inputs: Inputs, dtype: torch.dtype) -> torch.Tensor:
    """Forward pass, loss, and backward pass; under autocast unless `dtype` is float32.

    Returns the gradient of the video's CLS token, which depends on every layer in both passes.
    """
    device = inputs[0].device
    target = torch.zeros(inputs[0].shape[0], dtype=torch.long, device=device)
    module.zero_grad()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = F.cross_entropy(module(*inputs), target)
    loss.backward()
    return module.cls_token[VIDEO].grad


def contenders(reference: nn.Module) -> dict[str, nn.Module]:
    sdpa = with_sdpa(reference)
    return {  # in this order they get ready while there is time: of long clips, eager's scores take seconds
        "SDPA": sdpa,
        "eager": reference,
        "compiled eager": torch.compile(reference, dynamic=False),
        "compiled SDPA": torch.compile(sdpa, dynamic=False),
    }


def exported(reference: nn.Module, inputs: Inputs, dtype: torch.dtype) -> dict[str, Callable[[], torch.Tensor]]:
    """Inference in libraries that a user on a CPU would take; the first call exports."""
    arrays = [t.numpy() for t in inputs]

    @functools.cache
    def onnx_runtime():
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            torch.onnx.export(reference, inputs, path, input_names=["video", "special"], dynamo=True, verbose=False)
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    @functools.cache
    def openvino():
        import openvino

        precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
        config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        model = openvino.convert_model(reference, example_input=inputs)
        return openvino.compile_model(model, "CPU", {**config, "PERFORMANCE_HINT": "LATENCY"})

    def run_onnx() -> torch.Tensor:
        return torch.from_numpy(onnx_runtime().run(None, dict(zip(("video", "special"), arrays, strict=True)))[0])

    found = {"OpenVINO": lambda: torch.from_numpy(openvino()(arrays)[0])}
    if dtype == torch.float32:  # ONNX Runtime's CPU provider has no bfloat16 products
        found["ONNX Runtime"] = run_onnx
    return found


class _RecordProducts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in _PRODUCTS:
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def gemms_alone(run: Callable[[], object]) -> Callable[[], None]:
    """The matrix products that `run` makes, on the same operands, and nothing between them: a lower bound for it."""
    with _RecordProducts() as record, torch.no_grad():
        run()

    def replay() -> None:
        with torch.no_grad():
            for function, args, kwargs in record.calls:
                function(*args, **kwargs)

    return replay


def forward_flops(config: HSTAConfig, batch: int) -> float:
    """What the layers of both branches have to multiply and add, each counted as one: their products grow with the
    number of tokens, attention with its square, or in divided attention with frames times tokens and patches times
    tokens. A prefix query counts as any other; crossmodal attention and the classifier are below a hundredth."""
    total = 0.0
    for branch, (frames, height, width) in enumerate(config.grids):
        dim, patches = config.embed_dim[branch], height * width
        tokens = 1 + frames * patches
        lengths = [tokens] if config.attention == "joint" else [1 + patches] + [1 + frames] * (frames > 1)
        attention = sum(8 * tokens * dim**2 + 4 * tokens * length * dim for length in lengths)
        mlp = 4 * tokens * int(dim * config.mlp_ratio[branch]) * dim
        pixels = IN_CHANNELS * config.tubelet_size * config.patch_size[branch] ** 2
        total += sum(layers[branch] for layers in config.depth) * (attention + mlp) + 2 * tokens * pixels * dim
    return batch * total


def inference(size: dict, attention: str, batch: int, frozen: bool, dtype: torch.dtype, device: torch.device) -> Case:
    """One forward pass, in float32 or under bfloat16 autocast; ours as it is, or frozen."""
    fused, reference, inputs = build(size, attention, batch, device)

    @torch.no_grad()
    def run(module: nn.Module) -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return module(*inputs).float()

    others = {name: partial(run, module) for name, module in contenders(reference.eval()).items()}
    if device.type == "cpu":
        others |= exported(reference, inputs, dtype)
    limit = "its GEMMs alone"
    others[limit] = gemms_alone(partial(run, fused.eval()))
    ours = hsta_kernels.inference.freeze(fused, dtype, batch_size=batch) if frozen else fused
    work = f"{title(size)} {attention} inference{', frozen' if frozen else ''} B={batch}"
    return Case(
        "HSTA", work, dtype, device, partial(run, ours), others,
        flops=forward_flops(fused.config, batch), limit=limit, check=partial(agrees, dtype=dtype),
    )  # fmt: skip


def training(size: dict, attention: str, batch: int, dtype: torch.dtype, device: torch.device) -> Case:
    """Forward pass, loss, backward pass, in float32 or under bfloat16 autocast; and the memory that this takes."""
    fused, reference, inputs = build(size, attention, batch, device)
    others = {name: partial(training_step, module, inputs, dtype) for name, module in contenders(reference).items()}

    def peaks() -> float:
        common = (json.dumps(size), attention, 8, str(dtype).removeprefix("torch."), device)
        ours, theirs = (memory.of_step(__name__, who, *common) for who in ("ours", "SDPA"))
        return ours / theirs

    notes = {"peak memory at B=8 over SDPA's": peaks} if memory.measurable(device) else {}
    work = f"{title(size)} {attention} training step B={batch}"
    return Case(
        "HSTA", work, dtype, device, partial(training_step, fused, inputs, dtype), others,
        flops=3 * forward_flops(fused.config, batch), check=partial(agrees, dtype=dtype), notes=notes,
    )  # fmt: skip


def step_of(who: str, size: str, attention: str, batch: str, dtype: str, device: str) -> Callable[[], object]:
    """A training step of ``create_model(**size)``, or for "SDPA" of the reference on SDPA, for benchmarks/memory.py."""
    fused, reference, inputs = build(json.loads(size), attention, int(batch), torch.device(device))
    module = fused if who == "ours" else with_sdpa(reference)
    return partial(training_step, module, inputs, getattr(torch, dtype))


def agrees(name: str, theirs: torch.Tensor, ours: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises AssertionError where a contender computes something else: errors are some 1e-6 of the largest element in
    float32 and 1e-2 in bfloat16, attention without its scale is off by a quarter or more."""
    error = float((theirs - ours).abs().max() / ours.abs().max())
    allowed = {torch.float32: 1e-3, torch.bfloat16: 0.1}[dtype]
    if not error <= allowed:
        raise AssertionError(f"contender {name} is off by {error:.1e} of the largest element; allowed are {allowed:g}")


def works(device: torch.device, quick: bool) -> Iterator[Work]:
    # Compiling a whole model takes minutes; in the quick run it has one block of four.
    size = {"name": "hsta_tiny_224", "depth": ((1, 2),)} if quick else {"name": "hsta_base_224"}
    batch, weight = (2 if device.type == "cpu" else 32), (2 if quick else 6)
    for short, dtype in dtypes(quick).items():
        for attention in ("divided",) if quick else ("divided", "joint"):
            for frozen in (True,) if quick else (False, True):
                name = f"model-inference-{attention}{'-frozen' if frozen else ''}-{short}"
                yield Work(name, partial(inference, size, attention, 1, frozen, dtype, device), weight)
        yield Work(f"model-training-{short}", partial(training, size, "divided", batch, dtype, device), weight)
    if quick:
        return
    for short, dtype in dtypes(quick).items():
        for attention in ("divided", "joint"):
            case = partial(inference, size, attention, 8, True, dtype, device)
            yield Work(f"model-inference-{attention}-frozen-B8-{short}", case, weight, on_request=True)
    # Where attention decides: narrow tokens, long clips, large frames.
    for short, dtype in dtypes(quick).items():
        for field, value in LONG:
            for attention in ("divided", "joint"):
                long = {"name": "hsta_tiny_224", field: value}
                name = f"model-inference-{attention}-{field}-{value}-{short}"
                yield Work(name, partial(inference, long, attention, 1, True, dtype, device), 2)

"""The cases of the default and of the quick run. Cases are made one at a time: inputs of a finished one are freed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch._functorch.config

import hsta_kernels
from benchmarks import memory, model
from benchmarks.case import Case, backward_call, close_to_ours
from benchmarks.operators import add_layer_norm, bias_gelu, cross_modal_attention, space_time_attention

HEADS, HEAD_DIM, PATCHES = 12, 64, 196
WIDTH = HEADS * HEAD_DIM

torch._functorch.config.donated_buffer = False  # a backward pass is timed many times on one graph


def _in_triton(ours: Callable[..., object]) -> Callable[..., object]:
    def call(*tensors: torch.Tensor) -> object:
        with hsta_kernels.backend("triton"):
            return ours(*tensors)

    return call


def _case(operator, work, ours, others, inputs, outputs_like, backward, **floor) -> Case:
    dtype, device = inputs[0].dtype, inputs[0].device
    if os.environ.get("HSTA_BACKEND") == "cuda":  # what the CUDA kernels would have to beat to be chosen
        others = others | {"our Triton kernels": _in_triton(ours)}
    if backward:
        grads = [torch.randn_like(t) for t in outputs_like]
        mine, theirs = (
            backward_call(ours, inputs, grads),
            {n: backward_call(f, inputs, grads) for n, f in others.items()},
        )
    else:
        mine, theirs = partial(ours, *inputs), {name: partial(f, *inputs) for name, f in others.items()}
    return Case(operator, work, dtype, device, mine, theirs, check=close_to_ours, **floor)


def attention(axis: str, frames: int, prefix: int, batch: int, backward: bool, dtype, device) -> Case:
    grid = (frames, PATCHES)
    tokens = prefix + frames * PATCHES
    qkv = torch.randn(batch, tokens, 3, HEADS, HEAD_DIM, device=device).to(dtype)
    others = space_time_attention.contenders(grid, axis, prefix, qkv)

    def ours(x: torch.Tensor) -> torch.Tensor:
        return hsta_kernels.ops.space_time_attention(x, grid, axis, prefix)

    # Floors of the operators' specification: a token is read as q, k, v and written once; back, 7 such rows move.
    length = {"time": frames, "space": PATCHES, "joint": frames * PATCHES}[axis] + prefix
    moved = (7 if backward else 4) * batch * tokens * WIDTH * qkv.element_size()
    flops = (10 if backward else 4) * batch * tokens * length * WIDTH
    direction = "backward" if backward else "forward"
    work = f"{axis} {direction} T={frames} N={PATCHES} P={prefix} B={batch}"
    return _case("space_time_attention", work, ours, others, [qkv], [qkv[:, :, 0]], backward, bytes=moved, flops=flops)


def cross_modal(batch: int, tokens: int, backward: bool, dtype, device) -> Case:
    shapes = [(batch, WIDTH), (batch, tokens, WIDTH), (WIDTH,), (WIDTH,), *[(WIDTH, WIDTH), (WIDTH,)] * 3]
    inputs = [torch.randn(s, device=device) for s in shapes]
    inputs = [(t * WIDTH**-0.5 if t.shape == (WIDTH, WIDTH) else t).to(dtype) for t in inputs]

    def ours(*tensors: torch.Tensor) -> torch.Tensor:
        return hsta_kernels.ops.cross_modal_attention(*tensors, num_heads=HEADS)

    moved = (2 if backward else 1) * batch * tokens * WIDTH * inputs[0].element_size()
    work = f"{'backward' if backward else 'forward'} N={tokens} B={batch}"
    others = cross_modal_attention.contenders()
    return _case("cross_modal_attention", work, ours, others, inputs, [inputs[0]], backward, bytes=moved)


def residual_norm(rows: int, backward: bool, dtype, device) -> Case:
    inputs = [torch.randn(s, device=device).to(dtype) for s in ((rows, WIDTH), (rows, WIDTH), (WIDTH,), (WIDTH,))]
    moved = 4 * rows * WIDTH * inputs[0].element_size()
    work = f"{'backward' if backward else 'forward'} rows={rows} C={WIDTH}"
    others = add_layer_norm.contenders()
    ours = hsta_kernels.ops.add_layer_norm
    return _case("add_layer_norm", work, ours, others, inputs, inputs[:2], backward, bytes=moved)


def mlp_activation(rows: int, backward: bool, dtype, device) -> Case:
    inputs = [torch.randn(s, device=device).to(dtype) for s in ((rows, 4 * WIDTH), (4 * WIDTH,))]
    moved = (3 if backward else 2) * rows * 4 * WIDTH * inputs[0].element_size()
    work = f"{'backward' if backward else 'forward'} rows={rows} C={4 * WIDTH}"
    others = bias_gelu.contenders()
    return _case("bias_gelu", work, hsta_kernels.ops.bias_gelu, others, inputs, inputs[:1], backward, bytes=moved)


def inference(size: dict, attention_kind: str, batch: int, frozen: bool, dtype, device) -> Case:
    """One forward pass, in float32 or under bfloat16 autocast; ours as it is, or frozen."""
    fused, reference, (video, special) = model.build(size, attention_kind, batch, device)

    @torch.no_grad()
    def run(module: torch.nn.Module) -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return module(video, special).float()

    others = {key: partial(run, module) for key, module in model.contenders(reference.eval()).items()}
    others["its GEMMs alone"] = model.gemms_alone(partial(run, fused.eval()))
    ours = hsta_kernels.inference.freeze(fused, dtype) if frozen else fused
    work = f"{model.title(size)} {attention_kind} inference{', frozen' if frozen else ''} B={batch}"
    return Case("HSTA", work, dtype, device, partial(run, ours), others, limit="its GEMMs alone", check=_same_decision)


def training_step(size: dict, attention_kind: str, batch: int, dtype, device) -> Case:
    """Forward pass, loss, backward pass, in float32 or under bfloat16 autocast; and the memory that this takes."""
    fused, reference, inputs = model.build(size, attention_kind, batch, device)
    others = {
        key: partial(model.training_step, module, inputs, dtype) for key, module in model.contenders(reference).items()
    }
    notes = {}
    if memory.measurable(device):
        peaks = {who: memory.of_training_step(size, attention_kind, who, 8, dtype, device) for who in ("ours", "SDPA")}
        notes["peak memory at B=8 over SDPA's"] = peaks["ours"] / peaks["SDPA"]
    work = f"{model.title(size)} {attention_kind} training step B={batch}"
    ours = partial(model.training_step, fused, inputs, dtype)
    return Case("HSTA", work, dtype, device, ours, others, check=_same_decision, notes=notes)


def _same_decision(name: str, theirs: torch.Tensor, ours: torch.Tensor) -> None:
    if not torch.allclose(theirs, ours, atol=5e-2):
        raise AssertionError(f"contender {name} gives {theirs}, ours {ours}")


def cases(device: torch.device, quick: bool) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(identifier, function that makes the case) of every piece of work."""
    dtypes = (torch.float32, torch.bfloat16)
    batch = 4 if device.type == "cpu" else 32
    times = (3,) if quick else (3, 8, 16)
    works: list[tuple[str, int, int, int]] = [("time", t, 1, batch) for t in times]
    works += [("space", 3, 1, 2 if quick else batch)] + ([] if quick else [("joint", 3, 1, 1), ("joint", 8, 1, 1)])
    for axis, frames, prefix, size in works:
        for backward in (False, True):
            for dtype in dtypes:
                make = partial(attention, axis, frames, prefix, size, backward, dtype, device)
                yield f"attention-{axis}-T{frames}-P{prefix}-{'bwd' if backward else 'fwd'}-{_short(dtype)}", make
    for backward in (False, True):
        for dtype in dtypes:
            direction = f"{'bwd' if backward else 'fwd'}-{_short(dtype)}"
            yield f"cross_modal-{direction}", partial(cross_modal, 8, 588, backward, dtype, device)
            rows = 589 * (batch if device.type == "cpu" else 64)
            yield f"add_layer_norm-{direction}", partial(residual_norm, rows, backward, dtype, device)
            yield f"bias_gelu-{direction}", partial(mlp_activation, rows, backward, dtype, device)
    # Compiling a whole model takes minutes; in the quick run it has one block of four.
    size = {"name": "hsta_tiny_224", "depth": ((1, 2),)} if quick else {"name": "hsta_base_224"}
    batch = 2 if device.type == "cpu" else 32
    for dtype in dtypes:
        for kind in ("divided",) if quick else ("divided", "joint"):
            for frozen in (True,) if quick else (False, True):
                identifier = f"model-inference-{kind}{'-frozen' if frozen else ''}-{_short(dtype)}"
                yield identifier, partial(inference, size, kind, 1, frozen, dtype, device)
        yield f"model-training-{_short(dtype)}", partial(training_step, size, "divided", batch, dtype, device)


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]

"""A case: one piece of work, our way of doing it, everybody else's, and the least it can cost."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch._functorch.config
from torch.nn.attention import SDPBackend

import hsta_kernels
from benchmarks.gpu_timing import Rotated, sets_of_inputs
from benchmarks.measuring import Call

HEADS, HEAD_DIM, PATCHES = 12, 64, 196  # of the base model
WIDTH = HEADS * HEAD_DIM

torch._functorch.config.donated_buffer = False  # a backward pass is timed many times on one graph


def dtypes(quick: bool) -> dict[str, torch.dtype]:
    """What a run measures in, by the names in those of its cases."""
    return {"fp32": torch.float32} if quick else {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """`ours` and `contenders` compute the same from the same inputs; layout changes they need are inside the call.

    The first call of a contender compiles it, or finds out that it is not installed: making a case does neither.
    `bytes` and `flops` are the floor of design: what any implementation must move and compute (0: not counted).
    `ways` are ours run otherwise, compiled say: the fastest of ours and them counts.
    `limit` names a contender that does only part of the work, as a bound; it is timed, but is no contender.
    `notes` are figures besides time, each measured when called; `facts` say what a contender's name does not.
    """

    operator: str
    work: str
    dtype: torch.dtype
    device: torch.device
    ours: Call
    contenders: Mapping[str, Call]
    ways: Mapping[str, Call] = field(default_factory=dict)
    bytes: float = 0
    flops: float = 0
    limit: str | None = None
    check: Callable[[str, object, object], None] | None = None
    notes: Mapping[str, Callable[[], float]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """A case that is not made yet. `weight` is its share of a run's time, that of an operator's being 1; one
    `on_request` is measured where ``--only`` is given."""

    name: str
    make: Callable[[], Case]
    weight: float = 1
    on_request: bool = False


def operator_case(
    operator: str,
    work: str,
    ours: Callable[..., object],
    others: Mapping[str, Callable[..., object]],
    inputs: Sequence[torch.Tensor],
    outputs_like: Sequence[torch.Tensor],
    backward: bool,
    facts: Mapping[str, str] | None = None,
    **floor: float,
) -> Case:
    """Of functions of `inputs` whose outputs have the shapes of `outputs_like`: their forward or backward pass.

    On a GPU a call takes other inputs than the one before it, of the same numbers, where few would stay in its cache.
    """
    if os.environ.get("HSTA_BACKEND") == "cuda":  # what the CUDA kernels would have to beat to be chosen
        others = {**others, "our Triton kernels": _in_triton(ours)}
    grads = [torch.randn_like(t) for t in outputs_like]
    dtype, device = inputs[0].dtype, inputs[0].device
    size = sum(t.nbytes for t in (*inputs, *grads))
    sets = [(list(inputs), grads)]
    for _ in range(1, sets_of_inputs(device, size)):
        sets.append(([t.clone() for t in inputs], [t.clone() for t in grads]))

    def call(function: Callable[..., object]) -> Call:
        calls = [backward_call(function, *of) if backward else partial(function, *of[0]) for of in sets]
        return Rotated(calls) if device.type == "cuda" else calls[0]

    contenders = {name: call(function) for name, function in others.items()}
    check = close_to_ours
    return Case(operator, work, dtype, device, call(ours), contenders, check=check, facts=facts or {}, **floor)


def sdpa_takes(run: Callable[[Callable[..., torch.Tensor]], object]) -> str:
    """The implementations that scaled_dot_product_attention chooses in `run`, which is given a stand-in for it."""
    names: dict[str, None] = {}

    def ask(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        names[SDPBackend(torch._fused_sdp_choice(q, k, v)).name] = None
        return q  # as the result would be

    run(ask)
    return " and ".join(names)


def _in_triton(ours: Callable[..., object]) -> Callable[..., object]:
    def call(*tensors: torch.Tensor) -> object:
        with hsta_kernels.backend("triton"):
            return ours(*tensors)

    return call


def backward_call(function: Callable[..., object], inputs: Sequence[torch.Tensor], grads: list[torch.Tensor]) -> Call:
    """A call that runs only the backward pass of ``function(*inputs)``; the forward pass runs once, in the first."""

    @functools.cache
    def graph() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        outputs = function(*leaves)
        return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs), leaves  # type: ignore[call-overload]

    # The absorbed form of crossmodal attention has no use for the key bias: its gradient is then made of zeros.
    return lambda: torch.autograd.grad(*graph(), grads, retain_graph=True, materialize_grads=True)


def close_to_ours(name: str, theirs: object, ours: object) -> None:
    """A wrong contender cannot win: results must agree, as root mean square, as well as the dtype's rounding lets them.

    Parity is tested elsewhere, against float64; here a contender may be off by what bfloat16 costs where large terms
    cancel (the softmax's backward pass: 15 % of the query weights' gradient in direct crossmodal attention). A result
    that we know to be zero (the gradient of crossmodal attention's key bias) is rounding noise with contenders: not
    compared.
    """
    for a, b in zip(_tensors(theirs), _tensors(ours), strict=True):
        tolerance = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 1e-2}[b.dtype]
        scale = b.double().square().mean().sqrt()
        if scale == 0:
            continue
        error = (a.double() - b.double()).square().mean().sqrt() / scale
        if not error <= tolerance:
            raise AssertionError(f"contender {name} disagrees with ours: relative error {error:.2e}")


def _tensors(value: object) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for t in value if isinstance(t, torch.Tensor)]  # type: ignore[attr-defined]

"""A case: one piece of work, our way of doing it, everybody else's, and the least it can cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch

from benchmarks import ceilings
from benchmarks.measuring import Timing, interleave

Call = Callable[[], object]


@dataclass
class Case:
    """`ours` and `contenders` compute the same from the same inputs; layout changes they need are inside the call.

    `bytes` and `flops` are the floor of design: what any implementation must move and compute (0: not counted).
    `limit` names a contender that does only part of the work, as a bound; it is timed, but is no contender.
    """

    operator: str
    work: str
    dtype: torch.dtype
    device: torch.device
    ours: Call
    contenders: Mapping[str, Call]
    bytes: float = 0
    flops: float = 0
    limit: str | None = None
    check: Callable[[str, object, object], None] | None = None
    notes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    operator: str
    work: str
    dtype: str
    device: str
    ours: Timing
    contenders: dict[str, Timing]
    best: str
    ratio: float
    ceiling: str
    share: float
    limit: str | None
    limit_ratio: float | None
    notes: dict[str, float]

    def as_dict(self) -> dict:
        return asdict(self)


def floor_seconds(case: Case) -> tuple[str, float]:
    """Which ceiling binds, and the seconds the work takes at it."""
    moving = case.bytes / ceilings.copy_bandwidth(case.device) if case.bytes else 0.0
    computing = case.flops / ceilings.gemm_rate(case.device, case.dtype) if case.flops else 0.0
    return ("copy bandwidth", moving) if moving >= computing else ("GEMM rate", computing)


def compare(case: Case, seconds_each: float) -> Result:
    """Checks every contender against ours, then times all of them in turns."""
    calls = {"ours": case.ours, **case.contenders}
    if case.check is not None:
        expected = case.ours()
        for name, call in case.contenders.items():
            if name != case.limit:
                case.check(name, call(), expected)
    timings = interleave(calls, case.device, seconds_each)
    return judge(case, timings)


def judge(case: Case, timings: dict[str, Timing]) -> Result:
    ours = timings["ours"]
    rivals = {name: timing for name, timing in timings.items() if name not in ("ours", case.limit)}
    best = min(rivals, key=lambda name: rivals[name].p50)
    ceiling, seconds = floor_seconds(case)
    return Result(
        operator=case.operator,
        work=case.work,
        dtype=str(case.dtype).removeprefix("torch."),
        device=str(case.device),
        ours=ours,
        contenders=rivals,
        best=best,
        ratio=rivals[best].p50 / ours.p50,
        ceiling=ceiling if seconds else "",
        share=seconds / ours.p50,
        limit=case.limit,
        limit_ratio=ours.p50 / timings[case.limit].p50 if case.limit else None,
        notes=case.notes,
    )


def close_to_ours(name: str, theirs: object, ours: object) -> None:
    """A wrong contender cannot win: results must agree, as root mean square, as well as the dtype's rounding lets them.

    Parity is tested elsewhere, against float64; here a contender may be off by what bfloat16 costs where large terms
    cancel (the softmax's backward pass: 15 % of the query weights' gradient in direct crossmodal attention). A result
    that we know to be zero (the gradient of CSTA's key bias) is rounding noise with contenders: not compared.
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


def backward_call(function: Callable[..., object], inputs: list[torch.Tensor], grads: list[torch.Tensor]) -> Call:
    """A call that runs only the backward pass of ``function(*inputs)``; the forward pass has run once."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    outputs = function(*leaves)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)  # type: ignore[call-overload]
    # The absorbed form of crossmodal attention has no use for the key bias: its gradient is then made of zeros.
    return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True, materialize_grads=True)

"""How fast the fused module is against the reference, on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

import hsta_kernels


@dataclass(frozen=True)
class Comparison:
    """Median seconds of the reference and of the fused module."""

    what: str
    reference: float
    fused: float

    @property
    def ratio(self) -> float:
        return self.reference / self.fused


def compare(config: hsta_kernels.HSTAConfig, batch_size: int, rounds: int) -> list[Comparison]:
    """Inference and a training step of both modules with the same weights and inputs, on the CPU.

    The two take turns, so that what else the machine does meets both alike; one round before is not counted.
    """
    fused = hsta_kernels.HSTA(config)
    reference = hsta_kernels.reference.HSTA(config)
    reference.load_state_dict(fused.state_dict())
    video = torch.randn(batch_size, 3, config.num_frames, config.image_size, config.image_size)
    special = torch.randn(batch_size, 3, 2, config.image_size, config.image_size)

    def infer(model: torch.nn.Module) -> None:
        with torch.inference_mode():
            model(video, special)

    def learn(model: torch.nn.Module) -> None:
        model.zero_grad()
        model(video, special).sum().backward()

    comparisons = []
    for what, task, training in (("inference", infer, False), ("training step", learn, True)):
        seconds: list[list[float]] = [[], []]
        for round_ in range(rounds + 1):
            for model, times in zip((reference, fused), seconds, strict=True):
                spent = _seconds(task, model.train(training))
                if round_:
                    times.append(spent)
        comparisons.append(Comparison(what, *map(median, seconds)))
    return comparisons


def table(comparisons: list[Comparison]) -> str:
    """Milliseconds and the ratio, above 1 where the fused module is faster."""
    lines = [f"{'':<14} {'reference':>11} {'fused':>11} {'ratio':>7}"]
    lines += [
        f"{c.what:<14} {1e3 * c.reference:>8.1f} ms {1e3 * c.fused:>8.1f} ms {c.ratio:>6.2f}x" for c in comparisons
    ]
    return "\n".join(lines)


def _seconds(task: Callable[[torch.nn.Module], None], model: torch.nn.Module) -> float:
    start = time.perf_counter()
    task(model)
    return time.perf_counter() - start

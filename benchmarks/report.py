"""The table, the JSON file and the picture of a run."""

from __future__ import annotations

import json
import os
import platform
from datetime import date
from pathlib import Path

import torch

import hsta_kernels
from benchmarks import ceilings
from benchmarks.case import Result

HERE = Path(__file__).resolve().parent


def machine(device: torch.device) -> dict[str, object]:
    """What the figures were measured on."""
    facts: dict[str, object] = {
        "date": date.today().isoformat(),
        "hsta_kernels": hsta_kernels.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "copy_bandwidth_gb_s": ceilings.copy_bandwidth(device) / 1e9,
    }
    if hsta_kernels.backends.cpu is not None:
        facts["cpu_isa"] = hsta_kernels.backends.cpu.cpu_isa()
    for dtype in (torch.float32, torch.bfloat16):
        facts[f"gemm_gflop_s_{str(dtype).removeprefix('torch.')}"] = ceilings.gemm_rate(device, dtype) / 1e9
    return facts


def title(device: torch.device) -> str:
    facts = machine(device)
    where = f"{facts['device']}, {facts['threads']} threads, PyTorch {facts['torch']}, {facts['date']}"
    return f"hsta_kernels {facts['hsta_kernels']} against the best contender: {where}"


def table(results: list[Result]) -> str:
    lines = [
        "| operator | work | dtype | ours, ms [p20, p80] | best contender, ms | ratio | share of ceiling |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        ours = f"{1e3 * r.ours.p50:.3g} [{1e3 * r.ours.p20:.3g}, {1e3 * r.ours.p80:.3g}]"
        best = f"{r.best} {1e3 * r.contenders[r.best].p50:.3g}"
        share = f"{100 * r.share:.0f} % of {r.ceiling}" if r.ceiling else ""
        for name, value in r.notes.items():
            share += f"{name} {value:.2f}x"
        if r.limit:
            share = f"{r.limit_ratio:.2f}x {r.limit}"
        lines.append(f"| {r.operator} | {r.work} | {r.dtype} | {ours} | {best} | **{r.ratio:.2f}x** | {share} |")
    return "\n".join(lines)


def write_json(path: Path, results: list[Result], device: torch.device) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    content = {"machine": machine(device), "results": [r.as_dict() for r in results]}
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def plot(path: Path, results: list[Result], title: str) -> None:
    """Speed over the best contender of every piece of work, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [f"{r.operator}: {r.work} ({r.dtype})" for r in results]
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.24 * len(results)))
    colors = ["#2a6f97" if r.ratio >= 1 else "#bc4b51" for r in results]
    bars = axes.barh(names, [r.ratio for r in results], color=colors)
    axes.bar_label(bars, [f" {r.ratio:.1f}x vs {r.best}" for r in results], fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0, 1.5 * max(r.ratio for r in results))
    axes.invert_yaxis()
    axes.tick_params(labelsize=7)
    axes.set_xlabel("times as fast as the best contender", fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, dpi=150)
    os.replace(temporary, path)
    pyplot.close(figure)

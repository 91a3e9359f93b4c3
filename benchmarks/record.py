"""The file of a run: what was measured, on what machine, and what was left out."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import hsta_kernels
from benchmarks import ceilings
from benchmarks.measuring import Timing
from hsta_kernels.processor import processor_name

FOLDER = Path(__file__).resolve().parent / "results"
PACKAGES = (
    *("torch", "triton", "onnxruntime", "openvino", "flash-attn", "xformers"),
    *("transformers", "diffusers", "timm"),
)


@dataclass(frozen=True)
class Result:
    """One case. Seconds are in the timings; `share` is the part of the ceiling that ours reaches."""

    name: str
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
    notes: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # contender: why
    facts: dict[str, str] = field(default_factory=dict)
    ways: dict[str, Timing] = field(default_factory=dict)  # ours run otherwise, and slower


@dataclass
class Results:
    """What is in one file; `left_out` says why a case has no result."""

    machine: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """At once or not at all, so that an interrupted run leaves what it had."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(temporary, path)


def read(path: Path) -> Results:
    """What `Results.write` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        content = json.loads(path.read_text())
        rows = [
            Result(
                **{
                    **row,
                    "ours": Timing(**row["ours"]),
                    "contenders": {name: Timing(**timing) for name, timing in row["contenders"].items()},
                    "ways": {name: Timing(**timing) for name, timing in row.get("ways", {}).items()},
                }
            )
            for row in content["results"]
        ]
        return Results(content["machine"], rows, content["left_out"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no file of benchmarks.run: {type(error).__name__}: {error}") from None


def identity(device: torch.device) -> dict[str, Any]:
    """What has to be the same for figures to go into one file: processor or GPU, instruction set, threads, versions."""
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "instruction_set": hsta_kernels.backends.cpu.cpu_isa() if hsta_kernels.backends.cpu is not None else "none",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "hsta_kernels": hsta_kernels.__version__,
    }
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on, and its ceilings, which are measured here."""
    facts = {"date": date.today().isoformat(), **identity(device)}
    facts["copy_bandwidth_gb_s"] = ceilings.copy_bandwidth(device) / 1e9
    for dtype in (torch.float32, torch.bfloat16):
        facts[f"gemm_gflop_s_{str(dtype).removeprefix('torch.')}"] = ceilings.gemm_rate(device, dtype) / 1e9
    return facts

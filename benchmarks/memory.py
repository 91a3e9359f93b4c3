"""Peak memory of a training step, each model in a process of its own so that nobody else's memory is in the figure.

On a GPU it is the allocator's peak. On the CPU it is the process's largest resident set (VmHWM; ru_maxrss would include
the parent's) above what was resident before the model was made: weights, gradients, activations, working memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def measurable(device: torch.device) -> bool:
    return device.type == "cuda" or _STATUS.exists()


def of_training_step(size: dict, attention: str, who: str, batch: int, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes at the peak of a training step of ``create_model(**size)``, or for "SDPA" of the reference on SDPA."""
    arguments = (json.dumps(size), attention, who, str(batch), str(dtype).removeprefix("torch."), str(device))
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the memory of {who} could not be measured:\n{done.stderr}")
    return int(done.stdout)


def resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main(size: str, attention: str, who: str, batch: str, dtype: str, device: str) -> None:
    from benchmarks.operators import model

    where = torch.device(device)
    before = resident("VmRSS") if where.type == "cpu" else 0
    fused, reference, inputs = model.build(json.loads(size), attention, int(batch), where)
    module = fused if who == "ours" else model.with_sdpa(reference)
    del fused, reference
    for _ in range(2):
        model.training_step(module, inputs, getattr(torch, dtype))
    print(torch.cuda.max_memory_allocated(where) if where.type == "cuda" else resident("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])

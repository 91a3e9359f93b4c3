from __future__ import annotations

from typing import Any

import torch


def configuration(kernel: str, tensor: torch.Tensor, width: int, length: int) -> dict[str, Any]:
    small = tensor.dtype == torch.float32
    if kernel.startswith("time"):
        return {"ROWS": 32 if small else 64, "num_warps": 4, "num_stages": 1}
    return {"BLOCK_M": 32 if small else 64, "BLOCK_N": 32 if small else 64, "num_warps": 4, "num_stages": 2}

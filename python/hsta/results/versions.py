"""What computes the results, by version: another one may round them otherwise."""

from __future__ import annotations

import numpy as np
import torch

import hsta_kernels


def versions() -> dict[str, str]:
    return {"hsta-kernels": hsta_kernels.__version__, "torch": torch.__version__, "numpy": np.__version__}

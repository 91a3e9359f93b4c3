"""Every CUDA kernel against the float64 reference, on the emulator (test_emulator.py says how) and on a GPU.

The emulator runs a GPU's threads one after the other, so shapes are small.
"""

from __future__ import annotations

import pytest
import torch

from hsta_kernels import backends
from tests.ops import test_add_layer_norm as of_norm
from tests.tolerances import assert_close_to_reference

pytestmark = [
    pytest.mark.usefixtures("poisoned_empty"),
    *([] if backends.cuda_emulated else [pytest.mark.gpu]),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("magnitude", (1.0, 1e4, 1e-4))
def test_add_layer_norm(magnitude, dtype, device):
    if dtype == torch.float16 and magnitude > 1:
        magnitude = 1e3
    for shape in ((2, 17, 48), (1, 8), (5, 768), (3, 2, 4, 40), (70, 8), (2, 1040)):
        rows = (torch.randn(shape, dtype=torch.float64, device=device) * magnitude + magnitude for _ in range(2))
        parameters = (torch.randn(shape[-1], dtype=torch.float64, device=device) for _ in range(2))
        tensors = [t.to(dtype) for t in (*rows, *parameters)]
        grads = [torch.randn(shape, dtype=torch.float64, device=device).to(dtype) for _ in range(2)]
        exact = of_norm.run([t.double() for t in tensors], "reference", [g.double() for g in grads])
        same, ours = of_norm.run(tensors, "reference", grads), of_norm.run(tensors, "cuda", grads)
        names = ("norm", "sum", "grad x", "grad residual", "grad weight", "grad bias")
        for name, a, b, c in zip(names, ours, same, exact, strict=True):
            assert_close_to_reference(a, b, c, f"{name} {shape}")

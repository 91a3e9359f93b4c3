"""What an installed wheel must do, in an environment without a compiler: `python tests/wheel_smoke.py`.

Run by cibuildwheel for every wheel; needs nothing but the wheel's own dependencies.
"""

import torch

import hsta_kernels
from hsta_kernels import ops

qkv = torch.randn(2, 1 + 3 * 5, 3, 4, 16, requires_grad=True)


def both_passes(backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    out = ops.space_time_attention(qkv, (3, 5), "time", 1, backend=backend)
    return out, *torch.autograd.grad(out.square().sum(), qkv)


for kernel, expected in zip(both_passes("cpu"), both_passes("reference"), strict=True):
    torch.testing.assert_close(kernel, expected)

model = hsta_kernels.create_model("hsta_tiny_224", num_classes=3).eval()
with torch.no_grad():
    logits = model(torch.randn(1, 3, 6, 224, 224), torch.randn(1, 3, 2, 224, 224))
assert logits.shape == (1, 3) and logits.isfinite().all()
print(f"hsta-kernels {hsta_kernels.__version__}: {hsta_kernels.__file__}")

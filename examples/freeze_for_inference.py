"""A trained model made ready for inference: weights packed once for the products that are fastest on this processor."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import hsta_kernels

torch.manual_seed(0)
model = hsta_kernels.create_model("hsta_tiny_224", num_classes=3, image_size=96).eval()  # 224 unless it is said
video, special = torch.randn(1, 3, 6, 96, 96), torch.randn(1, 3, 2, 96, 96)

with TemporaryDirectory() as folder:  # what a training leaves: config.json and model.safetensors
    model.save_pretrained(Path(folder) / "checkpoint")
    frozen = hsta_kernels.inference.freeze(hsta_kernels.HSTA.from_pretrained(Path(folder) / "checkpoint"))

with torch.no_grad():
    torch.testing.assert_close(frozen(video, special), model(video, special), rtol=1e-3, atol=1e-5)

# bfloat16 for the products; the logits are float32. Fast where the processor multiplies pairs of bfloat16.
half = hsta_kernels.inference.freeze(model, torch.bfloat16)
assert half(video, special).dtype == torch.float32


def fastest(module: torch.nn.Module) -> float:
    """Milliseconds of the fastest of five calls."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        with torch.no_grad():
            module(video, special)
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds)


print(f"{fastest(model):.1f} ms, frozen {fastest(frozen):.1f} ms, in bfloat16 {fastest(half):.1f} ms")

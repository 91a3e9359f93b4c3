"""A temporal block of Stable Video Diffusion (diffusers) on these kernels, with the results of the original.

A whole pipeline is patched by its UNet: ``hsta_kernels.patch(pipeline.unet)``.
"""

import time

import torch
from diffusers.models.attention import TemporalBasicTransformerBlock

import hsta_kernels

torch.manual_seed(0)
FRAMES, POSITIONS, CHANNELS = 14, 24 * 16, 320
block = TemporalBasicTransformerBlock(CHANNELS, CHANNELS, num_attention_heads=5, attention_head_dim=64).eval()
latents = torch.randn(FRAMES, POSITIONS, CHANNELS)


@torch.no_grad()
def run() -> tuple[torch.Tensor, float]:
    block(latents, num_frames=FRAMES)
    start = time.perf_counter()
    out = block(latents, num_frames=FRAMES)
    return out, time.perf_counter() - start


expected, before = run()
print(hsta_kernels.patch(block))
out, after = run()
torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
print(f"the same to {(out - expected).abs().max().item():.0e}; {1e3 * before:.0f} ms became {1e3 * after:.0f}")

"""The operators in a video transformer of one's own: TimeSformer-like blocks with a CLS token.

Attention reads the packed projection as ``nn.Linear`` leaves it: no permute, no copy, over time as over space.
"""

import torch
from torch import Tensor, nn

import hsta_kernels
from hsta_kernels import ops

DIM, HEADS, GRID = 64, 2, (4, 9)  # 4 moments of 3 x 3 patches


class Attention(nn.Module):
    def __init__(self, axis: str):
        super().__init__()
        self.axis, self.qkv, self.proj = axis, nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, HEADS, DIM // HEADS))  # (B, 1 + T * N, 3, H, D)
        return self.proj(ops.space_time_attention(qkv, GRID, self.axis, num_prefix_tokens=1).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(3))
        self.time, self.space = Attention("time"), Attention("space")
        self.fc1, self.fc2 = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, 1 + T * N, C) to tokens. A sub-layer's sum and the next one's norm are one pass."""
        normed, x = self.add_norm(self.time(self.norms[0](x)), x, 1)
        normed, x = self.add_norm(self.space(normed), x, 2)
        hidden = ops.bias_gelu(nn.functional.linear(normed, self.fc1.weight), self.fc1.bias)
        return x + self.fc2(hidden)

    def add_norm(self, update: Tensor, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        norm = self.norms[number]
        return ops.add_layer_norm(update, x, norm.weight, norm.bias, norm.eps)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block())
    tokens = torch.randn(2, 1 + GRID[0] * GRID[1], DIM)
    out = model(tokens)
    out[:, 0].sum().backward()  # everything differentiates
    with hsta_kernels.backend("reference"):  # the same in plain PyTorch
        plain = model(tokens)
    torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-5)
    print(f"{tuple(out.shape)} from {hsta_kernels.available_backends()}, as plain PyTorch has it")

"""The Triton operators inside PyTorch's machinery: torch.compile, torch.export, opcheck, autocast, DDP.

One small block uses all four; like test_parity.py this runs in the interpreter (see test_interpreter.py) and on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hsta_kernels import backend, backends
from hsta_kernels.ops import add_layer_norm, bias_gelu, cross_modal_attention, space_time_attention
from hsta_kernels.ops.add_layer_norm import autograd as norm_ops
from hsta_kernels.ops.bias_gelu import autograd as gelu_ops
from hsta_kernels.ops.cross_modal_attention import autograd as absorbed_ops

pytestmark = [] if backends.triton_interpreted else [pytest.mark.gpu]
HALF = torch.float16  # of the half types, the one that the interpreter computes rightly
WIDTH, GRID = 32, (3, 5)


class Block(nn.Module):
    """(B, 1 + 15, WIDTH) to (B, WIDTH) by attention over time and over space, an MLP and crossmodal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.mlp = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.register_buffer("seed", torch.tensor([5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (t.to(x.dtype) for t in (self.norm.weight, self.norm.bias))
        for axis in ("time", "space"):
            qkv = self.qkv(x).unflatten(-1, (3, 2, WIDTH // 2))
            y, x = add_layer_norm(x, space_time_attention(qkv, GRID, axis, 1).flatten(2).to(x.dtype), weight, bias)
        y = nn.functional.linear(y, self.mlp.weight)
        x = x + bias_gelu(y, self.mlp.bias.to(y.dtype), 0.25, self.seed)
        projections = (t for layer in (self.q, self.k, self.v) for t in (layer.weight, layer.bias))
        parameters = (t.to(x.dtype) for t in (self.norm.weight, self.norm.bias, *projections))
        return cross_modal_attention(x[:, 0], x[:, 1:], *parameters, num_heads=2)


@pytest.fixture
def block(device) -> Block:
    return Block().to(device)


@pytest.fixture
def x(device) -> torch.Tensor:
    return torch.randn(2, 16, WIDTH, device=device)


def run(module: nn.Module, x: torch.Tensor, name: str = "triton") -> list[torch.Tensor]:
    """Output, and the gradients of the input and of every parameter, in their order."""
    leaf = x.detach().requires_grad_()
    module.zero_grad(set_to_none=True)
    with backend(name):
        out = module(leaf)
        out.float().square().sum().backward()
    return [out.detach(), leaf.grad, *(p.grad for p in module.parameters())]


def test_agrees_with_the_reference(block, x):
    for ours, theirs in zip(run(block, x), run(block, x, "reference"), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_compile_without_graph_breaks(block, x):
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(run(compiled, x), run(block, x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_export_with_any_batch_size(block, x):
    with backend("triton"):
        program = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        names = {str(node.target) for node in program.graph.nodes if "hsta_kernels" in str(node.target)}
        assert len(names) == 4, names  # the operators are nodes of their own, kernels of no backend are traced
        longer = torch.cat([x, x + 1, x])
        torch.testing.assert_close(program.module()(longer), block(longer))


def test_autocast(block, x):
    """Half-precision projections feed half-precision kernels; parameters and the residual stream stay float32."""
    with torch.autocast(x.device.type, dtype=HALF):
        ours, theirs = run(block, x), run(block, x, "reference")
    assert all(p.grad.dtype == torch.float32 for p in block.parameters())
    for a, b, exact in zip(ours, theirs, run(block, x, "reference"), strict=True):
        assert a.dtype == b.dtype
        error, allowed = ((t.double() - exact.double()).norm() for t in (a, b))
        assert error <= 2 * allowed + 1e-3 * exact.double().norm()


def test_distributed_data_parallel(block, x, tmp_path):
    """Gradients arrive through DDP's hooks and buckets."""
    expected = run(block, x)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for ours, theirs in zip(run(nn.parallel.DistributedDataParallel(block), x), expected, strict=True):
            assert torch.equal(ours, theirs)
    finally:
        torch.distributed.destroy_process_group()


def test_opcheck(device):
    rows, weight = torch.randn(3, 8, device=device), torch.randn(8, device=device)
    torch.library.opcheck(norm_ops.forward, (rows, rows, weight, weight, 1e-6, rows.dtype, "triton"))
    torch.library.opcheck(norm_ops.backward, (rows, rows, rows, weight, weight, 1e-6, True, "triton"))
    for rate, seed in ((0.0, None), (0.5, torch.tensor([5], device=device))):
        torch.library.opcheck(gelu_ops.forward, (rows, weight, rate, seed, "triton"))
        torch.library.opcheck(gelu_ops.backward, (rows, rows, weight, rate, seed, "triton"))
    u, query, tokens = (torch.randn(s, device=device) for s in ((2, 3, 48), (2, 48), (2, 7, 48)))
    torch.library.opcheck(absorbed_ops._forward, (u, query, tokens, 1e-6, 0.0, None, "triton"))
    z, stats = absorbed_ops._forward(u, query, tokens, 1e-6, 0.0, None, "triton")
    vector, matrix = torch.randn(48, device=device), torch.randn(48, 48, device=device)
    weights = vector, vector, matrix, vector, matrix, matrix, vector
    torch.library.opcheck(absorbed_ops.cross_modal_attention, (query, tokens, *weights, 3, 1e-6, "triton"))
    arguments = torch.randn_like(z), u, query, tokens, z, stats, 1e-6, 0.0, None, None, "triton"
    torch.library.opcheck(absorbed_ops._backward, arguments)

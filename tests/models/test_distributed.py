"""Two processes train as one: sharded (FSDP2) and replicated (DDP), over gloo on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hsta_kernels import HSTA, HSTAConfig, reference

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")

PROCESSES = 2
KINDS = {"fused": HSTA, "reference": reference.HSTA}
WAYS = ("fully_shard", "DistributedDataParallel")
CONFIG = HSTAConfig(image_size=32, embed_dim=(24, 48), num_heads=(3, 3), depth=((1, 2), (1, 1)), num_frames=4)


def inputs(rank: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(2, 3, 4, 32, 32, generator=generator), torch.randn(2, 3, 2, 32, 32, generator=generator)


def build(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind(CONFIG)


def steps(model: nn.Module, ranks: list[int]) -> list[Tensor]:
    """The losses of three steps of plain gradient descent on the clips of `ranks`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        loss = torch.stack([model(*inputs(rank, step)).square().mean() for rank in ranks]).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def shard(model: nn.Module) -> nn.Module:
    for block in model.blocks:
        for layers in block.blocks:
            for layer in layers:
                fully_shard(layer)
        fully_shard(block)
    return fully_shard(model)


def train(rank: int, kind: type[nn.Module], way: str) -> dict[str, object]:
    model = build(kind)
    model = shard(model) if way == "fully_shard" else DistributedDataParallel(model)
    losses = steps(model, [rank])
    weights = {name.removeprefix("module."): p for name, p in model.named_parameters()}
    if way == "fully_shard":
        assert all(isinstance(p, DTensor) for p in weights.values())
        weights = {name: p.full_tensor() for name, p in weights.items()}
    return {"losses": losses, "weights": {name: p.detach() for name, p in weights.items()}}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    try:
        for name, kind in KINDS.items():
            for way in WAYS:
                torch.save(train(rank, kind, way), Path(folder) / f"{name}-{way}-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of the results of two processes, which take a while to start: they do everything in turn."""
    path = tmp_path_factory.mktemp("two-processes")
    torch.multiprocessing.spawn(worker, (str(path),), nprocs=PROCESSES)
    return path


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", KINDS)
def test_two_processes_train_as_one(name, way, folder):
    results = [torch.load(folder / f"{name}-{way}-{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    alone = build(KINDS[name])
    losses = steps(alone, list(range(PROCESSES)))
    together = torch.stack([torch.stack(result["losses"]) for result in results]).mean(0)
    torch.testing.assert_close(together, torch.stack(losses), rtol=1e-4, atol=1e-6)
    for result in results:
        assert result["weights"].keys() == dict(alone.named_parameters()).keys()
        for parameter, expected in alone.named_parameters():
            torch.testing.assert_close(result["weights"][parameter], expected.detach(), rtol=1e-3, atol=1e-5)

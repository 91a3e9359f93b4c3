"""Weights dealt out to several devices (FSDP2), and whole again where they are written.

Where nothing is sharded, these functions give back what they get.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

import hsta_kernels

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(model: hsta_kernels.HSTA, mesh: DeviceMesh) -> hsta_kernels.HSTA:
    """Leave each device of ``mesh`` its part of every weight; it has a layer's whole ones only while it computes it.

    The model is changed, cannot be copied from then on, and is the same that is returned.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    line = init_device_mesh(mesh.device_type, (mesh.size(),))  # Lightning's has two dimensions
    for block in model.blocks:
        for layers in block.blocks:
            for layer in layers:
                fully_shard(layer, mesh=line)
        fully_shard(block, mesh=line)
    fully_shard(model, mesh=line)
    return model


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered, on the CPU; all its processes have to call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def dealt_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole ``tensor`` on the device of ``parameter``, sharded where that is; all its processes have to call this."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor


@torch.no_grad()
def copy_whole(source: hsta_kernels.HSTA, target: hsta_kernels.HSTA) -> None:
    """Put the weights of a sharded model into one that is not; all its processes have to call this."""
    for parameter, copied in zip(source.parameters(), target.parameters(), strict=True):
        copied.copy_(whole(parameter))

"""How the operators' autograd Functions call their custom ops."""

from __future__ import annotations

from typing import Any

import torch

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def call(op: Any, *arguments: Any) -> Any:
    """`op(*arguments)` for one of our custom ops.

    PyTorch's dispatcher takes some 16 µs for an op written in Python, as long as a small kernel. Where nobody looks at
    ops, neither a compiler nor a dispatch mode nor a tensor subclass nor autograd, the op's function is called instead.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch.is_grad_enabled()  # only for second derivatives, which the op refuses
        or any(isinstance(a, torch.Tensor) and type(a) not in _PLAIN for a in arguments)
    ):
        return op(*arguments)
    return op._init_fn(*arguments)

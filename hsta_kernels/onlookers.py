"""Who looks at the PyTorch operations of a call and could not see through a kernel put in their place.

A kernel reads addresses. What PyTorch attaches to a tensor, or wraps around a call, is lost on it: the result would
lack a tangent or a batch dimension, or be a constant of a trace, and nothing would say so. Dispatch modes, function
modes and compilers are not meant: they are shown the custom ops (`hsta_kernels.ops.dispatch`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))
_TRANSFORMED = "a transform of torch.func or a batched gradient is active, which cannot see into a kernel"
_BATCHED_GRADIENTS = torch._C._dispatch_key_parse("VmapMode")  # of torch.autograd.grad(..., is_grads_batched=True)
_transform = torch._C._functorch.peek_interpreter_stack
_is_included = torch._C._dispatch_tls_is_dispatch_key_included


def onlooker(tensors: Iterable[torch.Tensor | None]) -> str | None:
    """Why no kernel may run on `tensors`, all those of a call, or None."""
    if torch.compiler.is_compiling():
        return _TRANSFORMED if _transformed() else None
    if _transform() is not None or _is_included(_BATCHED_GRADIENTS):
        return _TRANSFORMED
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace is recording, which cannot see into a kernel"
    if not _PLAIN.issuperset(map(type, tensors)):
        for tensor in tensors:
            if _sees_operations(type(tensor)):
                return f"a tensor is a {type(tensor).__name__}, a subclass that defines PyTorch's operations anew"
    if forward_ad._current_level >= 0 and has_tangent(tensors):
        return "a tensor has a tangent of forward-mode differentiation, for which there is no kernel"
    return None


def has_tangent(arguments: Iterable[Any]) -> bool:
    """Whether one of the arguments, or of a list among them, is a tensor with a tangent of the current level of
    forward-mode differentiation."""
    return any(
        has_tangent(a)
        if isinstance(a, (list, tuple))
        else isinstance(a, torch.Tensor) and forward_ad.unpack_dual(a).tangent is not None
        for a in arguments
    )


def _transformed() -> bool:
    return _transform() is not None


# Asked while the compiler traces. torch.compiler.assume_constant_result does the same, but imports the compiler: 3 s.
_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _sees_operations(kind: Any) -> bool:
    if kind in _PLAIN or issubclass(kind, FakeTensor):
        return False
    return (
        kind.__torch_function__ is not torch._C._disabled_torch_function_impl
        or kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl
    )

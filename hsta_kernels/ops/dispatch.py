"""How the operators' autograd Functions call their custom ops, and what differentiates their backward passes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from hsta_kernels.onlookers import has_tangent, onlooker

_TENSORS = (torch.Tensor, torch.nn.Parameter)
_SCALARS = (float, int, bool, str, torch.dtype, type(None))


def custom_op(name: str, mutates: tuple[str, ...] = ()) -> Callable[[Callable], Any]:
    """Registers a function that runs a kernel as the PyTorch op ``hsta_kernels::name``; `mutates` it writes over.

    An op is called directly by what a compiler made of an operator, which may meet a tangent that was not there when it
    was made. PyTorch would drop the tangent without a word: the op refuses it.
    """

    def register(function: Callable) -> Any:
        @functools.wraps(function)
        def op(*arguments: Any) -> Any:
            if forward_ad._current_level >= 0 and has_tangent(arguments):
                raise NotImplementedError(
                    f"hsta_kernels::{name} has no forward-mode derivative; differentiate the operator itself, not "
                    "what torch.compile made of it"
                )
            return function(*arguments)

        return torch.library.custom_op(f"hsta_kernels::{name}", mutates_args=mutates)(op)

    return register


def call(op: Any, *arguments: Any) -> Any:
    """`op(*arguments)` for one of our custom ops.

    PyTorch's dispatcher takes some 9 µs for an op written in Python, as long as a small kernel. It is gone around
    where it would do nothing but call the op's function: no compiler, no mode, no subclass, no gradient that the op
    would have to refuse, no negative view or zero that has yet to be written out.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch.is_grad_enabled()
    ):
        return op(*arguments)
    for argument in arguments:
        for value in argument if type(argument) is tuple else (argument,):
            if type(value) in _TENSORS:
                if value.is_neg() or value._is_zerotensor():
                    return op(*arguments)
            elif type(value) not in _SCALARS:
                return op(*arguments)
    return op._init_fn(*arguments)


def gradient(
    kernel: Callable[..., tuple[torch.Tensor, ...]],
    formula: Callable[..., tuple[torch.Tensor, ...]],
    grad_outputs: tuple[torch.Tensor, ...],
    inputs: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor, ...]:
    """The gradients of `inputs`, differentiable any number of times.

    Args:
        kernel: computes them, as ``kernel(*grad_outputs, *inputs)``.
        formula: the function that they are gradients of, ``formula(*inputs)``, in plain PyTorch. It stands in for the
            kernel where somebody looks at its operations, and gives the derivatives of what the kernel computes.
        grad_outputs: the gradients of what `formula` returns.
    """
    tensors = (*grad_outputs, *inputs)

    def pull(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _vjp(formula, tensors[len(grad_outputs) :], tensors[: len(grad_outputs)])

    if onlooker(tensors) is not None:
        return pull(*tensors)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # the compiler has no second derivatives
        return _Gradient.apply(kernel, pull, *tensors)
    return kernel(*tensors)


class _Gradient(torch.autograd.Function):
    """A kernel's gradients, and theirs by PyTorch: from `pull`, which computes the same."""

    @staticmethod
    def forward(ctx: Any, kernel: Callable, pull: Callable, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(*tensors)
        ctx.pull = pull
        return kernel(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, *_vjp(ctx.pull, ctx.saved_tensors, grad_outputs)


def _vjp(
    function: Callable[..., tuple[torch.Tensor, ...]],
    inputs: tuple[torch.Tensor, ...],
    grad_outputs: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor, ...]:
    """In the dtypes of `inputs`, which autocast, if there was any, has made already."""
    with torch.autocast(inputs[0].device.type, enabled=False):
        return torch.func.vjp(function, *inputs)[1](grad_outputs)

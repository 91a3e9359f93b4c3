"""Which modules the fused model may pass by, reading their weights instead of calling them.

People attach things to a module that only calling it brings about: hooks, adapters in its place, parametrizations,
quantized weights, wrappers that shard or checkpoint it. Passing such a module by would ignore all that in silence. So
only a plain module is passed by, one whose call is known to do what its class defines and nothing else.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as _torch

# Dictionaries that PyTorch changes in place; its own `_has_any_global_hook` asks them too, but is not in PyTorch 2.6.
_GLOBAL_HOOKS = (
    _torch._global_backward_pre_hooks,
    _torch._global_backward_hooks,
    _torch._global_forward_pre_hooks,
    _torch._global_forward_hooks,
)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` does what the class `kind` defines, on ordinary parameters, and nothing else.

    A wrapper, a parametrization or a sharded module is of another class; pruning and the older weight and spectral norm
    hang on hooks; a quantized or distributed weight is of another class than ``nn.Parameter``.
    """
    return (
        type(module) is kind
        and not (
            module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        )
        and all(type(parameter) in (nn.Parameter, type(None)) for parameter in module._parameters.values())
        and module._compiled_call_impl is None  # by `module.compile()`
        and "forward" not in module.__dict__
        and not any(_GLOBAL_HOOKS)
    )


def is_plain_linear(module: nn.Module, bias: bool) -> bool:
    """A plain ``nn.Linear`` with or without a bias, as its place in the model is meant to have it."""
    return is_plain(module, nn.Linear) and (module.bias is not None) == bias


def is_plain_norm(module: nn.Module) -> bool:
    """A plain ``nn.LayerNorm`` over the last dimension, with weight and bias."""
    return (
        is_plain(module, nn.LayerNorm)
        and len(module.normalized_shape) == 1  # type: ignore[arg-type]
        and module.weight is not None
        and module.bias is not None
    )


def drop_rate(dropout: nn.Module) -> float | None:
    """The rate at which a plain ``nn.Dropout`` drops now; None when the module has to be called."""
    if not is_plain(dropout, nn.Dropout):
        return None
    rate = float(dropout.p) if dropout.training else 0.0  # type: ignore[arg-type]
    return rate if rate < 1 else None

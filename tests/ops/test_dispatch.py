"""Eager calls go around PyTorch's dispatcher, but not where somebody looks at ops."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hsta_kernels import backend, backends
from hsta_kernels.ops import add_layer_norm, bias_gelu, cross_modal_attention, dispatch, space_time_attention
from hsta_kernels.ops.add_layer_norm import autograd as add_layer_norm_ops

pytestmark = pytest.mark.skipif(backends.cpu is None, reason="the CPU kernels are not built")
WIDTH = 16
VECTOR, MATRIX = torch.ones(WIDTH), torch.eye(WIDTH)
OPERATORS = {
    "space_time_attention": lambda x: space_time_attention(x.view(1, 3, 3, 1, WIDTH), (1, 2), "space", 1),
    "cross_modal_attention": lambda x: cross_modal_attention(
        x[0, :1], x[:, 1:], VECTOR, VECTOR, *(MATRIX, VECTOR) * 3, num_heads=2
    ),
    "add_layer_norm": lambda x: add_layer_norm(x, x, VECTOR, VECTOR)[0],
    "bias_gelu": lambda x: bias_gelu(x, VECTOR),
}


def op_names(operator: str) -> list[str]:
    """Of the custom ops of the forward and the backward pass."""
    if operator == "cross_modal_attention":  # what it does between its projections has a backward pass of its own
        return ["cross_modal_attention", "absorbed_attention_backward"]
    return [f"{operator}_forward", f"{operator}_backward"]


@pytest.fixture(params=OPERATORS)
def operator(request):
    with backend("cpu"):
        yield request.param, OPERATORS[request.param]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(1, 9, WIDTH, requires_grad=True)


class Ops(TorchDispatchMode):
    """Notes the names of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "hsta_kernels":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def test_eager_goes_around_the_dispatcher(operator, x, monkeypatch):
    name, run = operator
    called = []
    monkeypatch.setattr(torch._library.custom_ops.CustomOpDef, "__call__", lambda op, *_: called.append(op))
    run(x).sum().backward()
    assert x.grad is not None and not called, name


def test_modes_see_the_ops(operator, x):
    name, run = operator
    with Ops() as seen:
        run(x).sum().backward()
    assert seen.names == op_names(name)


class Functions(TorchFunctionMode):
    """Notes the names of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if isinstance(func, torch._ops.OpOverload) and func.namespace == "hsta_kernels":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def test_function_modes_see_the_ops(operator, x):
    name, run = operator
    with Functions() as seen:  # PyTorch shows them no backward pass
        run(x)
    assert seen.names == op_names(name)[:1]


def test_an_op_is_no_constant_of_autograd(x):
    """An op without a derivative raises; its function called instead would pass for a constant."""
    total = dispatch.call(add_layer_norm_ops.forward, x[0], x[0], VECTOR, VECTOR, 1e-6, "cpu")[1]
    with pytest.raises(RuntimeError, match="hsta_kernels"):
        total.sum().backward()


def test_fake_tensors_stay_fake(operator, x):
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    out = operator[1](mode.from_tensor(x))
    assert isinstance(out, torch._subclasses.FakeTensor)


def test_a_default_device_is_no_obstacle(operator, x):
    """It is a function mode, but kernels run under it."""
    with torch.device("cpu"):
        out = operator[1](x)
    assert torch.equal(out, operator[1](x))

"""Eager calls go around PyTorch's dispatcher, but not where somebody looks at ops."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hsta_kernels import backend, backends
from hsta_kernels.ops import dispatch
from hsta_kernels.ops.add_layer_norm import autograd as add_layer_norm_ops
from tests.ops.cases import examples, run, tensors

pytestmark = pytest.mark.skipif(backends.cpu is None, reason="the CPU kernels are not built")


@pytest.fixture
def example(operator) -> str:
    """The name of the operator's first."""
    return next(iter(examples(operator.name)))


@pytest.fixture
def x(example) -> torch.Tensor:
    return tensors(example)[0].requires_grad_()


@pytest.fixture
def call(example):
    """The operator on the CPU kernels, as a function of its first tensor."""
    with backend("cpu"):
        yield lambda x: run(example, x, *tensors(example)[1:])[0]


def assert_both_passes(names: list[str], operator: backends.Operator) -> None:
    forward, backward = names
    assert forward in (operator.name, f"{operator.name}_forward")
    assert backward == f"{operator.name}_backward"


class Ops(TorchDispatchMode):
    """Notes the calls of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch._ops.OpOverload, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "hsta_kernels":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def test_eager_goes_around_the_dispatcher(call, x, monkeypatch):
    called = []
    monkeypatch.setattr(torch._library.custom_ops.CustomOpDef, "__call__", lambda op, *_: called.append(op))
    call(x).sum().backward()
    assert x.grad is not None and not called


def test_modes_see_the_ops(operator, call, x):
    with Ops() as seen:
        call(x).sum().backward()
    assert_both_passes([op._opname for op, _ in seen.calls], operator)


class Functions(TorchFunctionMode):
    """Notes the names of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if isinstance(func, torch._ops.OpOverload) and func.namespace == "hsta_kernels":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def test_function_modes_see_the_ops(operator, call, x):
    with Functions() as seen:  # PyTorch shows them no backward pass
        call(x)
    assert [name.removesuffix("_forward") for name in seen.names] == [operator.name]


def test_an_op_is_no_constant_of_autograd():
    """An op without a derivative raises; its function called instead would pass for a constant."""
    x, vector = torch.randn(9, 16, requires_grad=True), torch.ones(16)
    total = dispatch.call(add_layer_norm_ops.forward, x, x, vector, vector, 1e-6, x.dtype, "cpu")[1]
    with pytest.raises(RuntimeError, match="hsta_kernels"):
        total.sum().backward()


def test_fake_tensors_stay_fake(call, x):
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    out = call(mode.from_tensor(x))
    assert isinstance(out, torch._subclasses.FakeTensor)


def test_a_default_device_is_no_obstacle(call, x):
    """It is a function mode, but kernels run under it."""
    with torch.device("cpu"):
        out = call(x)
    assert torch.equal(out, call(x))

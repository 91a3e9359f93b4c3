"""Eager calls go around PyTorch's dispatcher, but not where somebody looks at ops."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hsta_kernels import backend, backends
from hsta_kernels.ops import add_layer_norm, bias_gelu, cross_modal_attention, space_time_attention

pytestmark = pytest.mark.skipif(backends.native is None, reason="the native kernels are not built")
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
    assert seen.names == [f"{name}_forward", f"{name}_backward"]


def test_second_derivatives_are_refused(operator, x):
    """An op without a derivative raises; a function called instead would pass for a constant."""
    (grad,) = torch.autograd.grad(operator[1](x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="hsta_kernels"):
        grad.sum().backward()


def test_fake_tensors_stay_fake(operator, x):
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    out = operator[1](mode.from_tensor(x))
    assert isinstance(out, torch._subclasses.FakeTensor)

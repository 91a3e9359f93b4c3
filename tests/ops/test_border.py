"""The C++ border: every tensor that a kernel takes is checked, and a wrong one is named."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import torch

import hsta_kernels
from hsta_kernels import backends
from hsta_kernels.ops.launch import cpu as launch
from hsta_kernels.ops.quantized_rows import quantize_rows, scale_rows
from hsta_kernels.products import Packed
from tests.ops.cases import examples


def parameters(module: str) -> dict[str, list[str]]:
    """Of every function in the stub of an extension module."""
    stub = ast.parse((Path(hsta_kernels.__file__).parent / f"{module}.pyi").read_text())
    functions = [node for node in stub.body if isinstance(node, ast.FunctionDef)]
    return {node.name: [arg.arg for arg in node.args.posonlyargs] for node in functions}


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_every_function_is_in_the_stub_and_the_reverse(name):
    module = getattr(backends, name)
    if module is None:
        pytest.skip(f"the {name} kernels are not built")
    assert set(parameters(f"_{name}")) == {name for name, _ in inspect.getmembers(module, callable)}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple]:
    """The arguments of one right call of every CPU kernel."""
    if backends.cpu is None:
        pytest.skip("the CPU kernels are not built")
    seen: dict[str, tuple] = {}

    class Recorder:
        def __getattr__(self, kernel: str):
            def run(*arguments: object) -> None:
                seen[kernel] = arguments
                getattr(module, kernel)(*arguments)

            return run

    module = backends.cpu
    monkeypatch.setattr(launch.backends, "cpu", Recorder())
    with backends.backend("cpu"):
        for operator in backends.OPERATORS:
            for function, shapes in examples(operator).values():
                tensors = {name: torch.randn(shape, requires_grad=True) for name, shape in shapes.items()}
                out = function(**tensors)
                sum(tensor.sum() for tensor in (out if isinstance(out, tuple) else (out,))).backward()
                with torch.no_grad():
                    function(**tensors)
    Packed(torch.randn(50, 20), torch.randn(50), "gelu", 7)(torch.randn(7, 20))
    scale_rows(torch.randn(7, 20), quantize_rows(torch.randn(7, 20), 127)[1], torch.randn(20), True)
    monkeypatch.undo()
    return seen


def wrong(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    longer = tensor.repeat_interleave(2, -1)
    faults = {"dimensions": tensor[None], "dtype": tensor.double(), "size": longer}
    if tensor.numel():  # of nothing, any strides are right
        faults["stride"] = longer[..., ::2]  # the same shape
    return faults


def test_a_wrong_tensor_is_named(calls):
    kernels = {
        name: names for name, names in parameters("_cpu").items() if "cpu_isa" not in name and "exp2" not in name
    }
    assert set(calls) == set(kernels)
    for kernel, names in kernels.items():
        run, arguments = getattr(backends.cpu, kernel), calls[kernel]
        assert len(arguments) == len(names), kernel
        for index, (name, argument) in enumerate(zip(names, arguments, strict=True)):
            if not isinstance(argument, torch.Tensor):
                continue
            for fault, tensor in wrong(argument.detach()).items():
                # The size of the first tensors is what the others are measured by.
                named = r"\w+" if fault == "size" else name
                with pytest.raises(ValueError, match=rf"^{kernel}: {named} is .*; expected "):
                    run(*arguments[:index], tensor, *arguments[index + 1 :])
            with pytest.raises(ValueError, match=rf"^{kernel}: {name} is of type int; expected a tensor"):
                run(*arguments[:index], 1, *arguments[index + 1 :])


def test_too_few_or_too_many_arguments_are_said(calls):
    for kernel, arguments in calls.items():
        run = getattr(backends.cpu, kernel)
        with pytest.raises(TypeError, match=f"{kernel} lacks the argument {parameters('_cpu')[kernel][-1]}"):
            run(*arguments[:-1])
        with pytest.raises(TypeError, match=f"{kernel} takes {len(arguments)} arguments; got {len(arguments) + 1}"):
            run(*arguments, 1)


def test_another_dtype_of_the_kernels_is_refused_too(calls):
    arguments = calls["bias_gelu_forward"]
    message = r"out is float16 of shape \(.*\), strides \(.*, 1\); expected float32 of shape \(.*\), contiguous$"
    with pytest.raises(ValueError, match=message):
        backends.cpu.bias_gelu_forward(*arguments[:-1], arguments[-1].half())

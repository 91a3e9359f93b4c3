"""What every operator refuses before anything runs, and what it takes besides Python's own numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hsta_kernels.ops import add_layer_norm, bias_gelu, cross_modal_attention, space_time_attention
from tests.ops.cases import CASES, OF_OPERATORS, run, tensors
from tests.ops.test_cross_modal_attention import HEADS


def nested(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor(list(tensor))


def jagged(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor(list(tensor), layout=torch.jagged)


NOT_DENSE = {
    "nested": nested,
    "jagged": jagged,
    "coo": torch.Tensor.to_sparse,
    "csr": lambda tensor: tensor.to_sparse_csr() if tensor.dim() > 1 else tensor.to_sparse(),
    "mkldnn": torch.Tensor.to_mkldnn,
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
}
ARGUMENTS = [(name, argument) for name, (_, shapes) in OF_OPERATORS.items() for argument in shapes]


@pytest.mark.filterwarnings("ignore:.*Sparse CSR:UserWarning", "ignore:.*nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", NOT_DENSE)
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_tensors_that_are_not_dense(name, argument, kind):
    args = list(tensors(name))
    i = list(CASES[name][1]).index(argument)
    if kind in ("jagged", "nested") and args[i].dim() < 2:
        pytest.skip("a nested tensor holds tensors of at least one dimension")
    if kind == "mkldnn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    args[i] = NOT_DENSE[kind](args[i])
    with pytest.raises(TypeError, match=f"^{argument} must be (a dense tensor|float32, bfloat16)"):
        run(name, *args)


def test_a_seed_that_is_not_dense():
    with pytest.raises(TypeError, match="seed must be a dense tensor"):
        bias_gelu(torch.randn(2, 4), torch.randn(4), 0.5, torch.tensor([7]).to_sparse())


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (
            lambda: add_layer_norm(*[torch.empty(3, 0)] * 2, *[torch.empty(0)] * 2),
            r"x must have shape .* C of at least 1",
        ),
        (lambda: bias_gelu(torch.empty(3, 0), torch.empty(0)), r"x must have shape .* C of at least 1"),
        (
            lambda: cross_modal_attention(
                torch.empty(2, 0),
                torch.empty(2, 3, 0),
                *[torch.empty(0)] * 2,
                *[torch.empty(0, 0), torch.empty(0)] * 3,
                1,
            ),
            r"tokens must have shape \(B, N, C\) with C of at least 1",
        ),
        (
            lambda: space_time_attention(torch.empty(1, 5, 3, 0, 8), (2, 2), "time"),
            "qkv must have H heads and a head_dim",
        ),
        (
            lambda: space_time_attention(torch.empty(1, 5, 3, 2, 0), (2, 2), "time"),
            "qkv must have H heads and a head_dim",
        ),
    ),
    ids=("add_layer_norm", "bias_gelu", "cross_modal_attention", "heads", "head_dim"),
)
def test_no_channels(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# name of a number -> call with it
NUMBERS = {
    "grid_size": (3, lambda n: space_time_attention(*tensors("space_time_attention_time"), (n, 4), "time")),
    "num_prefix_tokens": (1, lambda n: space_time_attention(*tensors("space_time_attention_time"), (3, 4), "time", n)),
    "scale": (0.5, lambda x: space_time_attention(*tensors("space_time_attention_time"), (3, 4), "time", 1, x)),
    "num_heads": (HEADS, lambda n: cross_modal_attention(*tensors("cross_modal_attention"), n)),
    "eps": (0.5, lambda x: cross_modal_attention(*tensors("cross_modal_attention"), HEADS, x)),
    "eps of add_layer_norm": (0.5, lambda x: add_layer_norm(*tensors("add_layer_norm"), x)[0]),
    "dropout_rate": (0.5, lambda x: bias_gelu(*tensors("bias_gelu"), x, torch.tensor([7]))),
}


@pytest.mark.parametrize("argument", NUMBERS)
@pytest.mark.parametrize("grad", (False, True), ids=("without gradients", "with gradients"))
def test_numpy_numbers(argument, grad):
    value, call = NUMBERS[argument]
    kinds = (np.int64, np.int32, np.uint8) if isinstance(value, int) else (np.float64, np.float32, np.float16)
    with torch.set_grad_enabled(grad):
        for kind in kinds:
            assert torch.equal(call(kind(value)), call(value))


@pytest.mark.parametrize("value", (True, np.True_, "1", 1j), ids=repr)
@pytest.mark.parametrize("argument", NUMBERS)
def test_what_is_no_number(argument, value):
    with pytest.raises(
        TypeError, match=rf"{argument.split()[0]} must be (a number|an integer|two integers \(T, N\)); got"
    ):
        NUMBERS[argument][1](value)

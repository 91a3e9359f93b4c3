"""Every operator and backend under PyTorch's compiler, and its custom ops under PyTorch's own check of them."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch.utils._pytree import tree_map_only

from hsta_kernels import BackendError, backend
from tests.kernels import SIMULATED
from tests.ops.cases import WIDTH, examples, tensors
from tests.ops.parity import assert_same_bits, run
from tests.ops.test_dispatch import Ops

# What simulates a GPU is slow, and does not change how an op is registered and traced.
CHECKS = {"test_utils": ("test_schema", "test_faketensor")} if SIMULATED else {}


@pytest.fixture
def calls(operator, kernel):
    """Functions and their tensors by name: the operator's examples that the backend takes, which are some at least."""
    taken = []
    for name, (function, shapes) in examples(operator.name).items():
        width = 96 if kernel.name == "cuda" else WIDTH  # the least that it takes
        drawn = (t.to(kernel.device) for t in tensors(name, kernel.dtype, width=width))
        arguments = dict(zip(shapes, drawn, strict=True))
        with backend(kernel.name), suppress(BackendError):
            function(**arguments)
            taken.append((function, arguments))
    assert taken
    return taken


def test_custom_ops_pass_opcheck(calls, kernel):
    for function, arguments in calls:
        with Ops() as seen:
            run(function, arguments, kernel.name)
        assert len(seen.calls) >= 2  # both passes
        for op, args in seen.calls:
            detached = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), args)
            torch.library.opcheck(op, detached, **CHECKS)


def test_compile_without_graph_breaks(calls, kernel):
    for function, arguments in calls:
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_same_bits(*(run(f, arguments, kernel.name) for f in (compiled, function)))

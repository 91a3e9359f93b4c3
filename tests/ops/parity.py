"""What right means for every operator, backend and case: outputs and gradients obey the rule of tests/tolerances.py."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch

from hsta_kernels import backend
from tests.kernels import Kernel
from tests.tolerances import assert_close_to_reference, nearby

Results = dict[str, torch.Tensor]


def run(
    function: Callable, tensors: Mapping[str, torch.Tensor], name: str, grads: Sequence[torch.Tensor] | None = None
) -> Results:
    """Outputs of ``function(**tensors)``, and gradients of all tensors, by name.

    The incoming gradients are `grads`, in the dtypes of the outputs, or the outputs themselves.
    """
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in tensors.items()}
    with backend(name):
        outs = function(**leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    grads = [g.detach().to(out.dtype) for g, out in zip(outs if grads is None else grads, outs, strict=True)]
    of_leaves = torch.autograd.grad(outs, list(leaves.values()), grads)
    return {f"out {i}": out.detach() for i, out in enumerate(outs)} | {
        f"grad of {key}": grad for key, grad in zip(leaves, of_leaves, strict=True)
    }


def assert_parity(
    function: Callable,
    tensors: Mapping[str, torch.Tensor],
    grads: Sequence[torch.Tensor],
    kernel: Kernel,
    *,
    zero: Collection[str] = (),
    near: Callable[[torch.Tensor], torch.Tensor] = nearby,
    case: object = "",
) -> tuple[Results, Results, Results]:
    """Compares `kernel` with the reference; returns the results of the kernel, the reference, and that in float64.

    Args:
        function: takes `tensors` by name, and returns a tensor or several.
        tensors: in the dtype and the layout that the kernel gets. The float64 reference sees them rounded.
        grads: the incoming gradients.
        zero: results that are exactly zero, and rounding noise with the reference.
        near: inputs that the dtype cannot tell from those given.
        case: what a failure names.
    """

    def reference(of: Callable[[torch.Tensor], torch.Tensor]) -> Results:
        return run(function, {key: of(tensor) for key, tensor in tensors.items()}, "reference", [of(g) for g in grads])

    ours, same = run(function, tensors, kernel.name, grads), run(function, tensors, "reference", grads)
    exact, moved = reference(torch.Tensor.double), reference(near)
    for key in ours:
        if key in zero:
            assert not ours[key].any(), f"{key} {case} is not zero"
        else:
            assert_close_to_reference(ours[key], same[key], exact[key], f"{key} {case}", moved[key])
    return ours, same, exact


def assert_same_bits(ours: Results, theirs: Results) -> None:
    for key in theirs:
        assert torch.equal(ours[key], theirs[key]), key

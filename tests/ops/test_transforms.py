"""Whoever looks at PyTorch's operations sees those of our operators: transforms, traces, tangents, subclasses.

Every transform is applied to every operator, once as it runs by itself, and to the reference in the same dtype and in
float64, whose operations are PyTorch's own.
"""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from hsta_kernels import BackendError, backend, backends
from tests.ops.cases import CASES, run, tensors
from tests.tolerances import assert_close_to_reference, nearby, rms

pytestmark = pytest.mark.skipif(backends.cpu is None, reason="the CPU kernels are not built")


def plain(name, *args):
    return run(name, *args)


def loss(name, *args):
    return sum(out.square().sum() for out in run(name, *args))


def directions(args):
    return tuple(torch.linspace(-1, 2, arg.numel()).to(arg).view(arg.shape) for arg in args)


def leaves(args):
    return tuple(arg.clone().requires_grad_() for arg in args)


def gradient(name, *args):
    return torch.func.grad(lambda *a: loss(name, *a), argnums=tuple(range(len(args))))(*args)


def jvp(name, *args):
    return torch.func.jvp(lambda *a: run(name, *a), args, directions(args))[1]


def jvp_of_each_argument(name, *args):
    """One argument at a time: the others have no tangent."""
    tangents = []
    for i, direction in enumerate(directions(args)):
        with forward_ad.dual_level():
            duals = (*args[:i], forward_ad.make_dual(args[i], direction), *args[i + 1 :])
            for out in run(name, *duals):
                tangent = forward_ad.unpack_dual(out).tangent
                tangents.append(torch.zeros_like(out) if tangent is None else tangent.clone())
    return tuple(tangents)


def stacked(args):
    return tuple(torch.stack((arg, arg.flip(0), arg.cos())) for arg in args)


def vmap(name, *args):
    return torch.func.vmap(lambda *a: run(name, *a))(*stacked(args))


def vmap_of_the_first(name, *args):
    in_dims = (0, *(None for _ in args[1:]))
    return torch.func.vmap(lambda *a: run(name, *a), in_dims)(stacked(args)[0], *args[1:])


def per_sample_gradients(name, *args):
    grad = torch.func.grad(lambda *a: loss(name, *a), argnums=tuple(range(len(args))))
    return torch.func.vmap(grad)(*stacked(args))


def hessian_vector_product(name, *args):
    return torch.func.jvp(lambda *a: gradient(name, *a), args, directions(args))[1]


def gradients_in_a_batch(name, *args):
    args = leaves(args)
    outs = run(name, *args)
    grads = tuple(torch.stack((out.detach(), out.detach().cos())) for out in outs)
    return torch.autograd.grad(outs, args, grads, is_grads_batched=True)


def tangent_of_a_gradient(name, *args):
    """Forward mode over the backward pass alone."""
    args = leaves(args)
    outs = run(name, *args)
    with forward_ad.dual_level():
        grads = [forward_ad.make_dual(out.detach(), out.detach().cos()) for out in outs]
        tangents = [forward_ad.unpack_dual(grad).tangent for grad in torch.autograd.grad(outs, args, grads)]
    return tuple(torch.zeros_like(a) if t is None else t for a, t in zip(args, tangents, strict=True))


def gradient_penalty(name, *args):
    args = leaves(args)
    grads = torch.autograd.grad(loss(name, *args), args, create_graph=True)
    return torch.autograd.grad(sum(grad.square().sum() for grad in grads).sqrt(), args, materialize_grads=True)


def negative_bits(name, *args):
    return run(name, *(arg.neg()._neg_view() for arg in args))


def gradients_with_negative_bits(name, *args):
    args = leaves(args)
    outs = run(name, *(arg._neg_view() for arg in args))
    return torch.autograd.grad(outs, args, tuple(out.detach().neg()._neg_view() for out in outs))


def imaginary_parts(name, *args):
    if args[0].dtype == torch.bfloat16:  # has no complex numbers
        return negative_bits(name, *args)
    return run(name, *(torch.complex(arg, -arg).conj().imag for arg in args))


def gradients_of_written_out_zeros(name, *args):
    args = leaves(args)
    outs = run(name, *args)
    return torch.autograd.grad(outs, args, [torch._efficientzerotensor(out.shape, dtype=out.dtype) for out in outs])


class Subclass(torch.Tensor):
    """Nothing but another type: PyTorch's operations return it too."""


def subclass(name, *args):
    outs = []
    for i, arg in enumerate(args):
        for out in run(name, *args[:i], arg.as_subclass(Subclass), *args[i + 1 :]):
            outs.append(out.as_subclass(torch.Tensor))
    return tuple(outs)


def jit_trace(name, *args):
    other = tuple(arg.cos() for arg in args)  # no constant of the trace
    return torch.jit.trace(lambda *a: run(name, *a), other)(*args)


def jit_trace_without_gradients(name, *args):
    with torch.no_grad():
        return jit_trace(name, *args)


TRANSFORMS = (
    gradient, jvp, jvp_of_each_argument, vmap, vmap_of_the_first, per_sample_gradients, hessian_vector_product,
    gradients_in_a_batch, tangent_of_a_gradient, gradient_penalty, negative_bits,
    gradients_with_negative_bits, imaginary_parts, gradients_of_written_out_zeros, subclass, jit_trace,
    jit_trace_without_gradients,
)  # fmt: skip


@pytest.fixture(params=CASES)
def name(request) -> str:
    return request.param


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=("float32", "bfloat16"))
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.__name__)
def test_transform(name, transform, dtype):
    def results(dtype, convert=lambda tensor: tensor):
        """Of eight draws in one: the largest error of fewer elements is luck, that of one draw thrice another's."""
        draws = [transform(name, *map(convert, tensors(name, dtype, seed))) for seed in range(8)]
        return [torch.stack(result) for result in zip(*draws, strict=True)]

    ours = results(dtype)
    with backend("reference"):
        theirs, exact, near = results(dtype), results(torch.float64), results(torch.float64, nearby)
    assert len(ours) == len(exact) > 0
    for i, (a, b, c, d) in enumerate(zip(ours, theirs, exact, near, strict=True)):
        assert_close_to_reference(a, b, c, f"{name}, result {i}", d)


@pytest.mark.parametrize(
    ("transform", "reason"),
    (
        (gradient, "a transform of torch.func"),
        (vmap, "a transform of torch.func"),
        (jvp_of_each_argument, "a tensor has a tangent of forward-mode differentiation"),
        (subclass, "a tensor is a Subclass, a subclass that defines PyTorch's operations anew"),
        (jit_trace, "torch.jit.trace is recording"),
    ),
)
def test_kernels_asked_for_by_name_are_refused(name, transform, reason):
    with backend("cpu"), pytest.raises(BackendError, match=f"backend 'cpu' cannot run .*: {reason}"):
        transform(name, *tensors(name))


def test_nobody_looking_kernels_run(name):
    """Else this file would compare the reference with itself."""
    args = tensors(name)
    with backend("reference"):
        expected = run(name, *args)
    assert any(not torch.equal(*pair) for pair in zip(run(name, *args), expected, strict=True))
    assert "Backward" in type(run(name, *leaves(args))[0].grad_fn).__name__


def test_first_gradients_keep_their_bits(name):
    args = leaves(tensors(name))
    grads = [torch.autograd.grad(loss(name, *args), args, create_graph=create) for create in (False, True)]
    for once, again in zip(*grads, strict=True):
        assert torch.equal(once, again)


def test_second_derivatives_of_the_reference(name):
    args = leaves(tensors(name, torch.float64))
    args = tuple(arg[:1].detach().requires_grad_() if arg.dim() > 2 or i == 0 else arg for i, arg in enumerate(args))
    assert torch.autograd.gradgradcheck(lambda *a: run(name, *a), args, fast_mode=True)


@pytest.mark.parametrize("transform", (vmap, gradient, jvp, per_sample_gradients), ids=lambda t: t.__name__)
def test_compiled_transform(name, transform):
    torch.compiler.reset()
    compiled = torch.compile(lambda *args: transform(name, *args), fullgraph=True, backend="aot_eager")
    args = tensors(name)
    with backend("reference"):
        expected = transform(name, *args)
    for ours, theirs in zip(compiled(*args), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_meta_tensors(name):
    args = tensors(name, torch.bfloat16)
    for ours, real in zip(run(name, *(arg.to("meta") for arg in args)), run(name, *args), strict=True):
        assert (ours.shape, ours.dtype, ours.device.type) == (real.shape, real.dtype, "meta")


def test_a_compiled_operator_refuses_tangents_that_it_was_not_compiled_for(name):
    function, args = CASES[name][0], tensors(name, torch.float32, 0)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    compiled(*args)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        compiled(forward_ad.make_dual(args[0], torch.ones_like(args[0])), *args[1:])


def third_derivatives(name, *args):
    args = leaves(args)
    value = loss(name, *args)
    for _ in range(2):
        grads = torch.autograd.grad(value, args, create_graph=True, materialize_grads=True)
        value = sum((grad * direction).sum() for grad, direction in zip(grads, directions(args), strict=True))
    return torch.autograd.grad(value, args, materialize_grads=True)


@pytest.mark.parametrize(("dtype", "tolerance"), ((torch.float32, 1e-3), (torch.bfloat16, 0.2)), ids=str)
def test_third_derivatives(name, dtype, tolerance):
    """Rounding is amplified by some elements and hardly by others, whoever rounds, so the error rule's largest error is
    luck. A wrong formula, such as that of PyTorch's own layer norm (2.13), is off by multiples."""
    ours, exact = third_derivatives(name, *tensors(name, dtype)), third_derivatives(name, *tensors(name, torch.float64))
    for i, (a, b) in enumerate(zip(ours, exact, strict=True)):
        error, scale = rms(a.double() - b), rms(b)
        assert error <= tolerance * scale + 1e-6, f"{name}, result {i}: {error:.1e} of {scale:.1e}"

"""NaN and infinity stay where plain PyTorch has them: none is lost, none gets into rows that do not see it."""

from __future__ import annotations

import itertools

import pytest
import torch

from hsta_kernels import backend, backends
from hsta_kernels.ops import add_layer_norm, bias_gelu, space_time_attention
from hsta_kernels.ops.cross_modal_attention.autograd import AbsorbedAttention
from tests.ops import cases as of_all
from tests.ops.parity import run
from tests.tolerances import assert_close_to_reference

KERNELS = [name for name in ("cpu",) if backends.unavailable(name) is None]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SPECIAL = (float("nan"), float("inf"), -float("inf"))


class Comparison:
    """Of results of many calls. What is finite is compared at the end, all together, by the rule of all parity tests:
    the largest error of a few numbers is a matter of chance."""

    def __init__(self) -> None:
        self.finite: dict[str, list[list[torch.Tensor]]] = {}

    def add(self, result: str, ours, same, exact, cases, place: object = "") -> None:
        """Row i of the tensors is `cases[i]`. They are NaN, infinite and negative infinite where the float64 reference
        is: PyTorch's product of bfloat16 matrices on the CPU lets a NaN into the row before its own."""
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            for row, *at in (kind(ours) != kind(exact)).nonzero()[:1].tolist():
                raise AssertionError(f"{result} {place}, {cases[row]}: {kind.__name__} is wrong at {at}")
        finite = exact.isfinite() & same.isfinite()
        self.finite.setdefault(result, []).append([t[finite] for t in (ours, same, exact)])

    def finish(self) -> None:
        for result, tensors in self.finite.items():
            assert_close_to_reference(*(torch.cat(parts) for parts in zip(*tensors, strict=True)), result)


def compare_attention(comparison: Comparison, qkv, grid, axis, prefix, scale, kernel, cases) -> None:
    """One sample of `qkv` a case. In GPU kernels, NaN may stand for what is infinite in a prefix token's results, and
    in all results of a sample whose prefix has an infinity."""
    grad = torch.randn(qkv.shape[:2] + qkv.shape[3:]).to(qkv)

    def results(name, dtype):
        leaf = qkv.to(dtype, copy=True).requires_grad_()
        with backend(name):
            out = space_time_attention(leaf, grid, axis, prefix, scale)
        return out.detach(), *torch.autograd.grad(out, leaf, grad.to(dtype))

    trio = results(kernel, qkv.dtype), results("reference", qkv.dtype), results("reference", torch.float64)
    for result, *tensors in zip(("out", "grad_qkv"), *trio, strict=True):
        if kernel != "cpu" and axis != "joint":
            ours, _, exact = tensors
            loose = torch.arange(ours.shape[1], device=ours.device) < prefix
            loose = loose | qkv[:, :prefix].isinf().flatten(1).any(1, keepdim=True)
            loose = loose.view(loose.shape + (1,) * (ours.ndim - 2)) & ours.isnan() & exact.isinf()
            tensors[0] = torch.where(loose, exact, ours).to(ours.dtype)
        comparison.add(result, *tensors, cases, (grid, prefix))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", (3, 5, 8, 40, 64, 128))
@pytest.mark.parametrize("axis", ("time", "space", "joint"))
def test_parity_of_special_values(axis, head_dim, dtype, name):
    """One of them in q, k or v: of a prefix token, of the first patches, of one in between, of the last."""
    comparison = Comparison()
    shapes = [*itertools.product(((3, 2), (8, 3)), (0, 1, 2, 3)), ((37, 2), 0), ((37, 2), 1)]
    for (members, groups), prefix in shapes:
        grid = (groups, members) if axis == "space" else (members, groups)
        length = prefix + grid[0] * grid[1]
        tokens = sorted({0, prefix, prefix + 1, length // 2, length - 1})
        cases = [None, *itertools.product(SPECIAL, range(3), tokens), None]
        qkv = torch.randn(len(cases), length, 3, 2, head_dim).to(dtype)
        for sample, case in enumerate(cases):
            if case is not None:
                value, part, token = case
                qkv[sample, token, part, 0, head_dim // 2] = value
        compare_attention(comparison, qkv, grid, axis, prefix, None, name, cases)
    comparison.finish()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", (0.35, -0.35, 1.0, 0.0, 0.6931471805599453), ids=str)
@pytest.mark.parametrize("axis", ("time", "space", "joint"))
def test_parity_of_infinite_scores(axis, scale, dtype, name):
    """Of one key, of all, of every other: rows of -inf, prefix queries with nothing else in one of their groups."""
    comparison = Comparison()
    for grid, prefix in itertools.product([(3, 2), (1, 2), (8, 3), (2, 1), (2, 37)], (0, 1, 2, 3)):
        length = prefix + grid[0] * grid[1]
        keys = [0], [length - 1], [*range(length)], [*range(prefix, length, 2)]
        cases = [*itertools.product((1, -1), keys)]
        qkv = (torch.rand(len(cases), length, 3, 1, 8) + 0.5).to(dtype)
        for sample, (sign, infinite) in enumerate(cases):
            qkv[sample, infinite, 1] = sign * float("inf")
        compare_attention(comparison, qkv, grid, axis, prefix, scale, name, cases)
    comparison.finish()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", (3, 8, 40, 67))
def test_parity_of_special_values_in_rows(width, dtype, name):
    """Of add_layer_norm and bias_gelu: in the middle or at the end of a row."""
    cases = [None, *itertools.product(SPECIAL, (width // 2, width - 1)), None]
    x, weight, bias = (torch.randn(shape).to(dtype) for shape in ((len(cases), 5, width), width, width))
    for sample, case in enumerate(cases):
        if case is not None:
            x[sample, 3, case[1]] = case[0]

    def norm(x, weight, bias):
        return torch.cat(add_layer_norm(x, x.detach().sign(), weight, bias), dim=1)

    def gelu(x, weight, bias):
        return bias_gelu(x, bias)

    def dropped(x, weight, bias):
        torch.manual_seed(0)
        return bias_gelu(x, bias, 0.5)

    comparison = Comparison()
    for call in (norm, gelu, dropped):
        grad = torch.randn(call(x, weight, bias).shape).to(dtype)

        def results(name, dtype, call=call, grad=grad):
            tensors = [t.to(dtype, copy=True).requires_grad_() for t in (x, weight, bias)]
            with backend(name):
                out = call(*tensors)
            return [out.detach(), *torch.autograd.grad(out, tensors, grad.to(dtype), materialize_grads=True)]

        trio = results(name, dtype), results("reference", dtype), results("reference", torch.float64)
        names = "result", "grad of x", "grad of weight", "grad of bias"
        for result, *tensors in zip(names, *trio, strict=True):
            comparison.add(f"{call.__name__}, {result}", *tensors, cases if tensors[0].ndim > 1 else range(width))
    comparison.finish()


@pytest.mark.skipif(not KERNELS, reason="the CPU kernels are not built: there is nothing to compare")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_in_the_examples_of_every_operator(operator, dtype):
    """In the middle and at the end of the largest tensor: seen in the outputs and in this tensor's gradient."""
    for name, (function, shapes) in of_all.examples(operator.name).items():
        comparison, clean = Comparison(), of_all.tensors(name, dtype)
        grads = [torch.randn(out.shape).to(dtype) for out in of_all.run(name, *clean)]
        largest = max(shapes, key=lambda argument: torch.Size(shapes[argument]).numel())
        for value, place in itertools.product(SPECIAL, (torch.Size(shapes[largest]).numel() // 2, -1)):
            arguments = {argument: tensor.clone() for argument, tensor in zip(shapes, clean, strict=True)}
            arguments[largest].view(-1)[place] = value
            ours, same = (run(function, arguments, which, grads) for which in ("cpu", "reference"))
            exact = run(function, {key: tensor.double() for key, tensor in arguments.items()}, "reference", grads)
            for key in [*(key for key in ours if key.startswith("out")), f"grad of {largest}"]:
                rows = range(len(ours[key]))
                comparison.add(f"{name}, {key}", ours[key], same[key], exact[key], rows, (value, place))
        comparison.finish()


@pytest.mark.skipif(not KERNELS, reason="the CPU kernels are not built: there is nothing to compare")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", SPECIAL)
def test_parity_of_special_values_in_a_sample(value, dtype):
    """Of crossmodal attention, whose results depend on all tokens of their sample: all NaN there, none elsewhere."""
    for tokens, width in ((0, 24), (9, 40), (32, 48), (197, 33)):
        for place in {0, tokens // 2, tokens}:
            rows = torch.randn(3, 1 + tokens, width).to(dtype)
            results = []
            for special in (False, True):
                if special:
                    rows[1, place, width // 2] = value
                u = torch.linspace(-1, 1, 6 * width).view(1, 6, width).expand(3, -1, -1).clone().requires_grad_()
                leaf = rows.clone().requires_grad_()
                z = AbsorbedAttention.apply(u, leaf[:, 0], leaf[:, 1:], torch.zeros(width), 1e-6, 0.0, None, "cpu")
                results.append((z.detach(), *torch.autograd.grad(z, (u, leaf), torch.ones_like(z))))
            for clean, with_special in zip(*results, strict=True):
                assert with_special[1].isnan().all(), f"{tuple(clean.shape)}, token {place}"
                assert torch.equal(with_special[::2], clean[::2])

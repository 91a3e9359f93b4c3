"""The attention kernels' PTX for sm_90, executed: what the matrix unit computes and shared memory passes on is right.

Compilers have stored a wgmma result in one layout and read it back in another (Triton 3.4 to 3.6, fla-org #826), and a
barrier or a fence too few shows on a GPU alone, now and then. Here the operators run on a machine for PTX
(ptx_machine.py), with the configurations of an H100, and obey the rule of all backends.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest

from hsta_kernels import backends

if not backends._triton_installed or backends.triton_interpreted:
    pytest.skip(
        "Triton's compiler is not there: not installed, or replaced by its interpreter", allow_module_level=True
    )

import torch
from triton.runtime.jit import JITFunction

from hsta_kernels.ops.launch import triton as launching
from tests.kernels import Kernel
from tests.ops import attention as of_attention
from tests.triton.ptx_machine import Fault, execute
from tests.triton.ptx_memory import GlobalMemory
from tools.ahead_of_time import Launch, compile_for

pytestmark = pytest.mark.usefixtures("poisoned_empty")
KERNEL = Kernel("triton", "cpu", simulated=True)


class H100:
    """In place of Triton's launcher. Notes what was in the kernels' PTX, or an edit of it."""

    def __init__(self) -> None:
        self.edit = lambda name, ptx: ptx
        self.ptx: dict[str, str] = {}

    def launcher(self, kernel: JITFunction, grid: tuple[int, ...]):
        return lambda *arguments, **options: self.launch(Launch(kernel, grid[0], arguments, options))

    def launch(self, launch: Launch) -> None:
        compiled = compile_for(launch, 90)
        types = compiled.src.signature.values()
        tensors = [a for a in launch.arguments if isinstance(a, torch.Tensor)]
        arguments = [
            a.data_ptr() if isinstance(a, torch.Tensor) else a
            for a, of in zip(launch.arguments, types, strict=False)
            if of != "constexpr"
        ]
        self.ptx[launch.name] = self.edit(launch.name, compiled.asm["ptx"])
        if launch.dependent and "griddepcontrol.wait" not in self.ptx[launch.name]:
            raise Fault(f"{launch.name} does not wait for the kernel in front of it")
        execute(
            self.ptx[launch.name], launch.options.get("num_warps", 4), compiled.metadata.shared, launch.programs,
            GlobalMemory(tensors), arguments,
        )  # fmt: skip


@pytest.fixture
def h100(monkeypatch) -> H100:
    machine = H100()
    monkeypatch.setattr(backends, "triton_interpreted", True)  # so that tensors on the CPU are taken
    monkeypatch.setattr(launching, "architecture", lambda device: 90)
    monkeypatch.setattr(JITFunction, "__getitem__", lambda kernel, grid: machine.launcher(kernel, grid))
    return machine


def check(axis: str, grid: tuple[int, int], head_dim: int = 64, dtype: torch.dtype = torch.bfloat16) -> None:
    qkv = torch.randn(1, 1 + grid[0] * grid[1], 3, 2, head_dim, dtype=torch.float64)
    of_attention.check(qkv, grid, axis, 1, dtype, KERNEL)


def test_attention_of_timesformer(h100):
    """The way of its prefix over space, and tokens patch by patch, in three tensors."""
    q, k, v = (torch.randn(1, 2, 1 + 2 * 70, 64).bfloat16().transpose(1, 2) for _ in range(3))
    of_attention.assert_parity(
        lambda q, k, v, **more: of_attention.space_time_attention(
            (q, k, v), (2, 70), "space", prefix="frame_mean", token_order="patch_major", **more
        ),
        {"q": q, "k": k, "v": v}, [torch.randn_like(q)], KERNEL,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("axis", "grid", "head_dim"),
    # two tiles or more of each kind, the last one not full
    [("time", (3, 25), 64), ("time", (8, 9), 64), ("time", (16, 4), 64), ("time", (8, 9), 32), ("space", (2, 196), 64),
     ("space", (2, 100), 64), ("space", (2, 49), 64), ("joint", (3, 150), 64)],
)  # fmt: skip
def test_attention(axis, grid, head_dim, h100):
    check(axis, grid, head_dim)
    on_the_matrix_unit = {name for name, ptx in h100.ptx.items() if "wgmma.mma_async" in ptx}
    expected = {
        "time": set() if grid[0] == 3 else {"time_forward", "time_backward"},  # it takes 64 rows, few frames have 16
        "space": {"flash_forward", "group_backward"},
        "joint": {"flash_forward", "flash_backward_q", "flash_backward_kv"},
    }
    assert on_the_matrix_unit == expected[axis]


@pytest.mark.parametrize(("axis", "grid"), [("time", (3, 25)), ("space", (2, 70))])
def test_attention_with_dropout(axis, grid, h100):
    """Each query's numbers of kept keys, summed by other threads than those that need them."""
    qkv = torch.randn(1, 1 + grid[0] * grid[1], 3, 1, 64).bfloat16()
    function = partial(of_attention.attention(grid, axis), dropout_rate=0.3, seed=torch.tensor([1 << 40]))
    of_attention.assert_parity(function, {"qkv": qkv}, [torch.randn_like(qkv[:, :, 0])], KERNEL)


def without(pattern: str, instead: str = ""):
    """An edit of PTX at the first place that a pattern matches."""
    return lambda ptx: re.sub(pattern, instead, ptx, count=1)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(without(r"(stmatrix.*\n)\s*bar\.sync.*\n(\s*ldmatrix)", r"\1\2"), id="no barrier before a read"),
        pytest.param(without(r"(bar\.sync.*\n)(\s*stmatrix)(?=[^$]*ldmatrix)", r"\2"), id="no barrier before a write"),
        pytest.param(lambda ptx: ptx.replace("fence.proxy.async.shared::cta;", ""), id="no fence of shared memory"),
        pytest.param(without(r"(?s)(ldmatrix.*?)wgmma\.fence[^\n]*", r"\1"), id="no fence of registers"),
        pytest.param(without(r"wgmma\.wait_group.*"), id="no wait"),
        pytest.param(without(r"(ldmatrix.*)\.trans", r"\1"), id="not transposed"),
        pytest.param(without(r"(ldmatrix.*)(\[.*)\n(\s*ldmatrix.*)\[.*", r"\1\2\n\3\2"), id="the same rows twice"),
        pytest.param(without(r"(stmatrix.*\{)(%r\d+), (%r\d+)", r"\1\3, \2"), id="exchanged registers"),
    ],
)
def test_a_fault_is_seen(edit, h100):
    """In one kernel's PTX, of the way from one product through shared memory to the next."""
    assert_seen("time_backward", edit, h100)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(without(r"griddepcontrol\.wait ;"), id="no wait"),
        pytest.param(without(r"(?s)(griddepcontrol\.wait ;\n)(.*?\bld\.global.*?\n)", r"\2\1"), id="a load before"),
        pytest.param(
            without(
                r"(?s)(griddepcontrol\.)wait( ;.*?griddepcontrol\.)launch_dependents", r"\1launch_dependents\2wait"
            ),
            id="others come first",
        ),
    ],
)
def test_a_kernel_that_does_not_wait_is_seen(edit, h100):
    """For the one whose partial results it sums up: alone in time, it might read what has not been written."""
    assert_seen("sum_prefix", edit, h100)


def assert_seen(kernel: str, edit: Callable[[str], str], h100: H100) -> None:
    edited = []

    def one(name: str, ptx: str) -> str:
        if name != kernel:
            return ptx
        edited.append((ptx, edit(ptx)))
        return edited[-1][1]

    h100.edit = one
    with pytest.raises((Fault, AssertionError)):
        check("time", (8, 9))
    assert edited and all(before != after for before, after in edited)

"""Programmatic dependent launch, as far as it shows without a GPU: who is launched how, and who waits before what.

Nothing of a race shows here: that a kernel waits before it touches memory, and that its launch says that it does, is
all that is to be right (hsta_kernels/ops/launch/triton_chain.py).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable

import pytest

from hsta_kernels import backends

if not backends._triton_installed or backends.triton_interpreted:
    pytest.skip(
        "Triton's compiler is not there: not installed, or replaced by its interpreter", allow_module_level=True
    )

import torch

from hsta_kernels.ops.launch import triton as launching
from tools.ahead_of_time import (
    _CUOBJDUMP,
    AMD,
    ARCHITECTURES,
    Launch,
    absorbed_attention,
    attention,
    compile_for,
    crossmodal,
    gelu,
    launches,
    norm,
)

# What one call launches: forward, then backward.
CALLS: dict[str, tuple[Callable, tuple[list[str], list[str]]]] = {
    "time": (attention("time", 8, 196, 1, 64), (["time_forward", "merge_prefix"], ["time_backward", "sum_prefix"])),
    "space": (
        attention("space", 8, 196, 1, 64), (["flash_forward", "merge_prefix"], ["group_backward", "sum_prefix"])
    ),
    "TimeSformer": (
        attention("space", 8, 196, 1, 64, prefix="frame_mean", token_order="patch_major"),
        (["flash_forward", "mean_prefix"], ["flash_backward_q", "flash_backward_kv", "sum_prefix"]),
    ),
    "joint": (attention("joint", 8, 196, 0, 64), (["flash_forward"], ["flash_backward_q", "flash_backward_kv"])),
    "absorbed": (
        absorbed_attention(588, 768), (["absorbed_forward", "merge_z"], ["absorbed_backward", "sum_parts"])
    ),
    "absorbed and dropout": (
        absorbed_attention(588, 768, dropout_rate=0.1),
        (
            ["draw_factors", "row_scores", "absorbed_columns", "merge_z"],
            ["draw_factors", "row_gradients", "absorbed_columns_backward", "sum_parts"],
        ),
    ),
    "crossmodal": (
        crossmodal(588, 768),
        (
            ["absorb_query", "absorbed_forward", "merge_z", "project_values"],
            ["project_values_backward", "absorbed_backward", "sum_parts", "query_backward", "absorb_query_backward",
             "norm_backward"],
        ),
    ),
}  # fmt: skip
since_3_6 = pytest.mark.skipif(
    launching.version() < (3, 6), reason="older Tritons are launched without programmatic dependent launch"
)


def noted(name: str, target: int | str) -> list[Launch]:
    return launches(lambda: CALLS[name][0](torch.bfloat16), target)


@since_3_6
@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch >= 90])
@pytest.mark.parametrize("name", CALLS)
def test_all_but_the_first_of_a_call_are_dependent(name, arch):
    found = noted(name, arch)
    if arch == 90:
        assert [launch.name for launch in found] == [*CALLS[name][1][0], *CALLS[name][1][1]]
    firsts = {0, len(CALLS[name][1][0])}
    assert [launch.dependent for launch in found] == [place not in firsts for place in range(len(found))]
    alone = name == "joint"  # its forward pass is one kernel
    assert [launch.options["CHAINED"] for launch in found] == [
        not (alone and place == 0) for place in range(len(found))
    ]


@pytest.mark.parametrize("target", (80, 89, *AMD))
@pytest.mark.parametrize("name", CALLS)
def test_nothing_changes_for_others(name, target):
    """Older GPUs and other vendors': neither launches nor code."""
    for launch in noted(name, target):
        assert launch.options["CHAINED"] is False
        assert "launch_pdl" not in launch.options  # which AMD's backend and Triton 3.2 refuse


def test_nothing_changes_for_an_older_triton(monkeypatch):
    monkeypatch.setattr(launching, "version", lambda: (3, 3))
    for launch in noted("time", 90):
        assert launch.options["CHAINED"] is False
        assert "launch_pdl" not in launch.options


@pytest.mark.parametrize("run", [norm(1000, 768), gelu(1000, 3072, 0.1)])
def test_kernels_that_stand_alone(run):
    """PyTorch follows them."""
    for launch in launches(lambda: run(torch.bfloat16), 90):
        assert not {"CHAINED", "launch_pdl"} & launch.options.keys()


def machine_code(cubin: bytes) -> list[str]:
    """Names of the instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([_CUOBJDUMP, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    return re.findall(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+ )?([A-Z][A-Z0-9_]*)", text)


def assert_waits(launch: Launch, arch: int) -> None:
    """In PTX, and in what ptxas made of it: a wait, then the next one's signal; memory only after both."""
    compiled = compile_for(launch, arch)
    ptx = compiled.asm["ptx"]
    assert ptx.count("griddepcontrol") == 2, launch.name
    wait, signal = ptx.index("griddepcontrol.wait"), ptx.index("griddepcontrol.launch_dependents")
    memory = re.search(r"\b(ld|st|atom|red|cp|prefetch|prefetchu|tensormap)\b\S*global", ptx)
    assert memory is not None, launch.name
    assert wait < signal < memory.start(), launch.name
    names = machine_code(compiled.asm["cubin"])
    touching = [
        place
        for place, name in enumerate(names)
        if re.fullmatch(r"(LD|ST|ATOM|RED)G?|LDGSTS|CCTL|UTMA\w*|UBLK\w*", name)
    ]
    assert names.count("ACQBULK") == 1, launch.name
    assert names.index("ACQBULK") < names.index("PREEXIT"), launch.name
    assert names.index("ACQBULK") < min(touching), launch.name


@since_3_6
@pytest.mark.parametrize("name", CALLS)
def test_every_kernel_waits_before_it_touches_memory(name):
    for launch in noted(name, 90):
        if launch.options["CHAINED"]:
            assert_waits(launch, 90)


@since_3_6
def test_kernels_for_a_b200_wait():
    for launch in noted("time", 100):
        assert_waits(launch, 100)


def test_there_is_nothing_of_it_for_an_a100():
    for launch in noted("time", 80):
        assert "griddepcontrol" not in compile_for(launch, 80).asm["ptx"], launch.name

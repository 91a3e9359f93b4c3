"""Predictions for GPUs that are not here: they do not fall unnoticed, and the model's parts do what they say.

Nothing is compiled: what was read from the machine code lies in tools/roofline/predictions.json, and is of these
kernels if their fingerprints are. Where a change is meant, `python -m tools.roofline --jobs 2` writes all of it anew.
"""

from __future__ import annotations

import pytest

from hsta_kernels import backends

if not backends._triton_installed or backends.triton_interpreted:
    pytest.skip("Triton is not there: not installed, or replaced by its interpreter", allow_module_level=True)

import triton

from tools.roofline import machine_code, record
from tools.roofline.cases import CASES
from tools.roofline.model import GPUS, executed, gaps, resident, throughput, variants
from tools.roofline.page import PAGE

VERSION, KERNELS, CODES, PREDICTIONS = record.read()
REGENERATE = "run `python -m tools.roofline --jobs 2`, and look at what it says fell"
same_compiler = pytest.mark.skipif(
    triton.__version__ != VERSION,
    reason=f"tools/roofline/predictions.json was written by Triton {VERSION}, this is another one",
)


@same_compiler
def test_predictions_do_not_fall_unnoticed():
    assert record.fingerprints() == KERNELS, REGENERATE
    assert set(record.places()) == set(CODES), REGENERATE
    now = record.rows(CODES)
    assert set(now) == set(PREDICTIONS), REGENERATE
    assert not record.fallen(PREDICTIONS, now), REGENERATE


def test_no_kernel_spills():
    assert not [name for name, code in CODES.items() if code.spills]


def test_the_page_is_of_these_predictions():
    text = PAGE.read_text()
    assert f"with Triton {VERSION} " in text
    for case in CASES:
        row = PREDICTIONS[f"H200 bf16 {case.title}"]
        assert f"| {case.title} | " in text
        assert f" | {row.microseconds:.1f} | {row.launches} | {row.limit} |" in text, REGENERATE


@same_compiler
@pytest.mark.parametrize("arch", [80, 90])  # sm_100's code does not tell how much tcgen05 multiplies
def test_products_in_the_code_are_those_of_the_shape(arch):
    """So the loops turn as often as is thought, and the paths are the ones that programs take."""
    counted = 0
    for index, case in enumerate(CASES):
        for launch, work in record.counted(index, "bf16", arch):
            code = CODES[record.key(launch, arch)]
            in_code = executed(code, work).flops * record.warps_of(launch) * launch.programs
            of_shape = work.matrix_flops + work.warp_matrix_flops
            # δ of whole tiles: on sm_80 only the products on the diagonal are left of it.
            assert in_code == pytest.approx(of_shape, rel=0.04), (case.title, launch.name)
            counted += in_code > 0
    assert counted > 20


def test_a_fall_is_told():
    row = record.Row(10.0, 0.5, 0.4, 0.6, "memory", 1)
    worse = record.Row(10.4, 0.48, 0.4, 0.6, "L2", 1)
    assert record.fallen({"a": row}, {"a": worse, "b": worse}) == ["a: 0.5 -> 0.48, memory -> L2"]
    assert not record.fallen({"a": row}, {"a": record.Row(10.2, 0.49, 0.4, 0.6, "memory", 1)})
    assert not record.fallen({"a": worse}, {"a": row})


def test_one_customer_waits_for_everything_and_many_for_the_slowest():
    assert throughput([3.0, 2.0], 5.0, 1) == pytest.approx(1 / 10)
    # Two customers by hand: the queues one leaves are 0.3 and 0.2, so residences 3.9 and 2.4.
    assert throughput([3.0, 2.0], 5.0, 2) == pytest.approx(2 / 11.3)
    assert throughput([3.0, 2.0], 5.0, 200) == pytest.approx(1 / 3, rel=1e-3)


def test_a_gap_is_shorter_in_front_of_a_dependent_launch():
    """Of four forward kernels all but the first; on an A100 none."""
    index = next(i for i, case in enumerate(CASES) if case.title == "crossmodal operator, N = 588, B = 8, forward")
    of = {gpu.name: [launch for launch, _ in record.counted(index, "bf16", gpu.arch)] for gpu in GPUS}
    a100, h200 = (next(gpu for gpu in GPUS if gpu.name == name) for name in ("A100", "H200"))
    assert gaps(a100, of["A100"], 0) == pytest.approx(4 * a100.launch)
    assert gaps(h200, of["H200"], 1) == pytest.approx(2 * h200.launch + 3 * h200.dependent)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "blocks"),
    [(32, 0, 4, 16), (128, 0, 4, 4), (129, 0, 4, 3), (255, 0, 8, 1), (32, 100 << 10, 4, 2), (32, 227 << 10, 4, 1)],
)
def test_blocks_of_a_multiprocessor(registers, shared, warps, blocks):
    h100 = next(gpu for gpu in GPUS if gpu.name == "H100")
    assert resident(h100, machine_code.Code(registers, shared, 0, []), warps) == blocks


def test_worse_and_better_assumptions_lie_around():
    for name, row in PREDICTIONS.items():
        assert row.worse <= row.share * 1.001, name
        assert row.share <= row.better * 1.001, name
    for gpu in GPUS:
        worse, better = variants(gpu)
        assert worse.latency > gpu.latency > better.latency


def listing(*lines: tuple[str, int, int, int]) -> str:
    """SASS of instructions that stall for so many cycles, write a scoreboard (7: none) and wait for a mask of them."""
    text = ""
    for place, (instruction, stall, write, wait) in enumerate(lines):
        control = (stall | write << 5 | 7 << 8 | wait << 11) << 41
        text += f"        /*{16 * place:04x}*/                   {instruction} ;    /* 0x{0:016x} */\n"
        text += f"{'':90}/* 0x{control:016x} */\n"
    return text


def test_a_warp_is_followed_through_loads_and_a_loop():
    turns = [("FADD R1, R1, R2", 4, 7, 0)] * 9
    code = machine_code.parse(
        listing(
            ("LDG.E.128 R4, [R2.64]", 1, 0, 0),
            ("LDG.E.128 R8, [R2.64+0x10]", 1, 1, 0),  # asked for together
            ("FADD R1, R4, R8", 4, 7, 0b11),
            ("LDG.E R4, [R4.64]", 1, 0, 0),  # and one that depends on them
            ("FADD R1, R4, R8", 4, 7, 0b1),
            *turns,
            ("@P0 BRA 0x50", 5, 7, 0),
            ("EXIT", 5, 7, 0),
        )
    )
    (way,) = machine_code.ways(code)
    path = machine_code.follow(code, way)
    assert path.once.waits == pytest.approx(2, abs=0.1)
    assert path.in_flight == 2 * 512
    (loop,) = path.loops
    assert (loop.instructions, loop.cycles, loop.waits) == (10, 9 * 4 + 5, 0)
    assert path.once.instructions == 6


def test_rare_cases_are_not_counted():
    """A call that a branch skips is that of a division's rare case."""
    code = machine_code.parse(
        listing(
            ("@!P0 BRA 0x30", 5, 7, 0),
            ("MOV R1, R2", 1, 7, 0),
            ("CALL.REL.NOINC 0x50", 5, 7, 0),
            ("FADD R1, R1, R2", 4, 7, 0),
            ("EXIT", 5, 7, 0),
            ("MUFU.RCP R1, R1", 1, 7, 0),
        )
    )
    (way,) = machine_code.ways(code)
    assert [code[i].name for i in way] == ["BRA", "FADD", "EXIT"]

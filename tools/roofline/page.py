"""docs/roofline.md and its picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import triton

from tools.roofline.cases import CASES, DTYPES, KNOWN, Case
from tools.roofline.model import GPUS, SCHEDULERS, Gpu
from tools.roofline.record import Codes, Row, kernels, known_rate, warps_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "roofline.md"
PICTURE = PAGE.parent / "pictures" / "roofline.svg"
ASKED = "H200"  # the card that targets are for

_INTRODUCTION = f"""# What the Triton kernels would take on a GPU

Predictions, not measurements: no GPU was at hand. `python -m tools.roofline` compiles every kernel of the benchmarks'
shapes with Triton {triton.__version__} for sm_80, sm_90 and sm_100, counts what it moves, multiplies and issues, and
works out a time. `tests/tools/test_roofline.py` fails when a prediction falls by more than 3 %, or a kernel spills,
until this page is written anew knowingly. Where a GPU is, `make gpu-check` measures, and what it says counts.

A share is of a device-to-device copy's bandwidth, counted as the floor's bytes over the time; attention over all tokens
is in TFLOP/s. The floor is what any implementation must move and compute: each token's q, k, v and result once (four
rows forward, seven backward), each token of the crossmodal pass once (twice backward), four rows of a LayerNorm, two
(three) of a GELU. In brackets: from worse to better values of what is assumed. Times are of calls replayed in a CUDA
graph.

![Predicted over asked, for an H200](pictures/roofline.svg)
"""

_MODEL = """
## The model, and what it leaves out

- **Bytes** are counted for each kernel from its own grid (`tools/roofline/kernels.py`): between memory and the chip
  every tensor once a kernel, between L2 and the multiprocessors everything that every program loads and stores.
  Inputs are not in L2 beforehand, as in the benchmarks; what a kernel's predecessor has read is, if half of L2 holds
  it.
- **Instructions and waiting** are read from the machine code (`machine_code.py`). The compiler's control codes say
  how many cycles an instruction waits, and for which earlier ones: a warp is followed through them, a loop as often
  as the shape makes it turn. So loads that are waited for one after the other, or asked for a tile ahead, show as
  such. That the products in the code are those of the shape is tested.
- **Many warps** on a multiprocessor are a closed queueing network (`model.py`), solved by mean value analysis. Its
  stations are memory (or L2, whichever takes longer), the pipes (instructions, or twice those that half of the lanes
  execute, or 8 cycles for a special function) and the matrix unit. Four warps are a customer. No number was fitted.
- **Waves**: the multiprocessor with the most programs decides. Full and tail tiles of attention are averaged.
- **Left out**: bank conflicts and the bandwidth of shared memory, misses of the instruction cache and of address
  translation, clocks that fall under load, L2's two halves, what barriers cost groups of warps that run apart. A
  product of tcgen05 (sm_100) takes an assumed 150 cycles to be seen. Kernels that put partial results together take
  each loop once. Weights of `add_layer_norm` and biases of `bias_gelu` are float32 here.
- **PyTorch's own launches** (sums of partial gradients) cost their bytes at a copy's speed and a launch each.
- **Dependent launches**, from sm_90 on: all kernels of a call but the first have a shorter gap in front of them. That
  their programs hold places meanwhile takes nothing from the kernel before, all of whose programs have theirs by then.
- **Host time** is not predicted. Without a graph a launch takes the host some 10 µs (assumed), so where the launches
  times that exceed the microseconds of the first table, the host is the limit.
"""

_CARDS = """
## What the numbers of the cards rest on

Multiprocessors, memory, peak rates, sizes: NVIDIA's data sheets and white papers. The clock is the one that the peak
rates rest on, B200's assumed. A copy: measured on an H200, an estimate for the H100, elsewhere the H200's share of
the data sheet. L2's bandwidth is assumed, of the order of published microbenchmarks of H100s; B200's is guessed. The
matrix unit's rate is the peak's; by `mma` an H100 reaches some 62 % of it (arXiv 2402.13499), for a B200 that is
guessed. A load's latency is assumed: following pointers through an idle H100 takes some 480 cycles (arXiv
2402.13499), a busy one more. So are the microseconds between two kernels of a graph. Of these, a dependent launch
saves one: 0.96 µs is what somebody measured for a pair of empty kernels in a graph, at 1,755 MHz, on a card that is not
named (GitHub, pegainfer issue 569); NVIDIA publishes no such figure. The brackets of the tables come
from 20 % less (at least a copy's) and more L2 bandwidth, latencies of 1.3 and 0.8 times these, 3 and 1 µs between
kernels (2 and 0.2 before a dependent one), and, for the worse end, a clock of 0.9.

"""


def _error(codes: Codes) -> str:
    here = {head_dim: known_rate(head_dim, codes) for head_dim in KNOWN}
    published = " and ".join(f"{rate / 1e12:.0f} at {head_dim}" for head_dim, rate in KNOWN.items())
    ours = " and ".join(f"{rate / 1e12:.0f} ({rate / KNOWN[head_dim] - 1:+.0%})" for head_dim, rate in here.items())
    return f"""
## How wrong it is

Nobody has measured these kernels. One published kernel is like ours, flash attention in Triton on an H100, forward,
bfloat16, 4,096 tokens: the paper of FlashAttention-3 (arXiv 2407.08608, figure 5) shows some
{published} elements a head, in TFLOP/s. Its tiles are not given; our kernel in tiles of
128 × 64 with 8 warps and 3 stages comes out at {ours} here.
One kernel is little to judge by, and not quite a test: that four warps are a customer, and not a block, was settled
with this figure in sight (blocks give 363 at 64). A plain copy is no test, for its speed is put in, and for a LayerNorm
or crossmodal attention there is no figure that we are sure of. Waiting is where the model knows least: where it is the
limit, expect an error of a quarter (a guess, as long as nothing is measured), at memory's limit what the bracket says.
Differences between two versions of a kernel are better than either figure.
"""


def _figure(case: Case, share: float) -> str:
    return f"{share / 1e12:.0f}" if case.target > 1 else f"{100 * share:.0f} %"


def _cell(case: Case, row: Row) -> str:
    return f"{_figure(case, row.share)} ({_figure(case, row.worse)}–{_figure(case, row.better)})"


_BOUNDS = """
## What is not reached, and what stops it

- **Over time, with a prefix token**, the parts of its softmax are merged by a second launch: 1 µs between kernels, for
  its programs have been placed before (programmatic dependent launch), and 2 to 4 for the merge, an eighth of the call
  at T = 3. The first kernel alone is at 91, 93 and 93 % of a copy at T = 3, 8 and 16. Backward at T = 8 and 16,
  scores, their gradients and the rows take 150 to 164 registers: three blocks on a multiprocessor, whose loads do not
  cover each other's waiting. A fourth would take 6 and 11 % off, but at 128 registers the kernel spills; other tiles,
  batched products of 16 rows and loops over tiles take longer or spill, too ([experiments](experiments.md)). Without a
  prefix, up to 16 frames lie in tiles of 16 rows, at memory's limit.
- **Over space** a group of 196 is two tiles of 128 rows forward, 59 of them empty, and instructions are issued two
  thirds of the time. One tile of 256 with 16 warps is 6 % faster in a large batch and slower in a small one; tiles of
  64 read keys and values from L2 four times. Backward one program holds a group, in 237 registers, and is alone on its
  multiprocessor.
- **Jointly**: at B = 1 there are fewer blocks than places for them. At B = 8 products wait for softmax in the same
  warps; descriptors for keys and values take 3 % off the time, and what Triton calls warp specialization changes
  nothing on sm_90 ([experiments](experiments.md)).
- **Crossmodal attention**: 8 samples of 588 tokens are 1.7 µs of a copy's time, less than a launch. With 64, a row's
  score needs the whole row before any of it can be weighed, and one block is all that fits on a multiprocessor:
  Triton's kernels wait for each other's warps. Those in CUDA C++, which do less of that, are predicted at 55 to 64 %
  ([table](cuda-resources.md)). Of the whole operator at B = 8, gaps between its launches are a seventh to a fifth;
  its weights have to be read whatever the batch.
- **`add_layer_norm` backward**: the gradients of weight and bias are sums over all rows, by partial sums and a second
  launch; the gaps of the two are 4 µs. A warp holds a row and both sums of its columns in 168 registers: 12 rows at a
  time on a multiprocessor, whose loads are asked for two turns ahead. Other tiles and stages take as long, and fewer
  registers spill ([experiments](experiments.md)).
- **Dropout in `bias_gelu`**: generator and mask are a third of the forward kernel's instructions, which limit it,
  though eight elements share a block of random bits. The mask is the same on every backend, so the generator stays.

"""


def _asked(case: Case) -> str:
    return f"{case.target / 1e12:.0f} TFLOP/s" if case.target > 1 else f"{100 * case.target:.0f} %"


def _against_targets(rows: Mapping[str, Row]) -> list[str]:
    others = [gpu.name for gpu in GPUS if gpu.name != ASKED]
    lines = [
        f"\n## bfloat16, against what is asked of an {ASKED}\n",
        f"| work | asked | {ASKED} | µs | launches | limit | {' | '.join(others)} |",
        "|" + "---|" * (6 + len(others)),
    ]
    for case in CASES:
        row = rows[f"{ASKED} bf16 {case.title}"]
        there = "**" if row.share >= case.target else ""
        cells = [f"{there}{_cell(case, row)}{there}", f"{row.microseconds:.1f}", str(row.launches), row.limit]
        cells += [_figure(case, rows[f"{name} bf16 {case.title}"].share) for name in others]
        lines.append(f"| {case.title} | {_asked(case)} | {' | '.join(cells)} |")
    return [*lines, "\nBold: as much as is asked, or more.\n"]


def _float32(rows: Mapping[str, Row]) -> list[str]:
    names = [gpu.name for gpu in GPUS]
    lines = ["\n## float32\n", f"| work | {' | '.join(names)} | limit on an {ASKED} |", "|" + "---|" * (2 + len(names))]
    for case in CASES:
        cells = [_figure(case, rows[f"{name} fp32 {case.title}"].share) for name in names]
        lines.append(f"| {case.title} | {' | '.join(cells)} | {rows[f'{ASKED} fp32 {case.title}'].limit} |")
    return lines


def _kernels(codes: Codes) -> list[str]:
    gpu = next(gpu for gpu in GPUS if gpu.name == ASKED)
    issued = 32 * SCHEDULERS * gpu.multiprocessors * gpu.clock / (gpu.copy / 2)
    lines = [
        f"\n## Every kernel, bfloat16, {ASKED}\n",
        "Bytes and FLOP are in multiples of the case's floor; blocks are those that a multiprocessor holds at a time;"
        " instructions are a warp's, and all threads' by element of the floor (a copy takes the time of"
        f" {issued:.0f} for one); in flight is what a multiprocessor has asked memory for at most, of what"
        " covers the latency at the speed of a copy (Little's law). Busy: memory, L2, pipes, matrix unit.\n",
        "| work | kernel | registers | shared | blocks | waves | bytes | … from L2 | FLOP | instructions |"
        " … an element | in flight | µs | busy |",
        "|" + "---|" * 14,
    ]
    of_pass: set[str] = set()
    for index, case in enumerate(CASES):
        floor = case.elements * DTYPES["bf16"].itemsize
        found = kernels(gpu, index, "bf16", codes)
        if "operator" in case.name:  # the pass comes just before it
            found = {name: of for name, of in found.items() if name not in of_pass}
        of_pass = set(found)
        for name, (launch, work, code, p) in found.items():
            flops = work.matrix_flops + work.warp_matrix_flops
            cells = [
                case.title, name, code.registers, code.shared_memory, p.blocks, f"{p.waves:.2f}",
                f"{work.bytes / floor:.2f}", f"{work.l2_bytes / floor:.2f}",
                f"{flops / case.flops:.2f}" if flops and case.flops else "", f"{p.instructions:.0f}",
                f"{32 * warps_of(launch) * launch.programs * p.instructions / case.elements:.1f}",
                f"{p.in_flight / 1024:.0f} of {p.needed / 1024:.0f} KiB", f"{p.seconds * 1e6:.1f}",
                ", ".join(f"{100 * share:.0f}" for share in (p.memory, p.l2, p.pipes, p.matrix)) + " %",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _cards() -> str:
    columns: dict[str, Callable[[Gpu], str]] = {
        "multiprocessors": lambda gpu: str(gpu.multiprocessors),
        "clock, GHz": lambda gpu: f"{gpu.clock / 1e9:.2f}",
        "a copy, TB/s": lambda gpu: f"{gpu.copy / 1e12:.2f}",
        "L2, TB/s": lambda gpu: f"{gpu.l2 / 1e12:.1f}",
        "L2, MB": lambda gpu: f"{gpu.l2_size / 1e6:.0f}",
        "shared memory, KiB": lambda gpu: str(gpu.shared_memory >> 10),
        "matrix FLOP a cycle and multiprocessor": lambda gpu: f"{gpu.matrix:,.0f}",
        "… by mma": lambda gpu: f"{gpu.warp_matrix:,.0f}",
        "a load, cycles": lambda gpu: f"{gpu.latency:.0f}",
        "between kernels, µs": lambda gpu: f"{gpu.launch * 1e6:.0f}",
        "… before a dependent one": lambda gpu: f"{gpu.dependent * 1e6:.0f}" if gpu.arch >= 90 else "none there",
    }
    lines = [f"| card | {' | '.join(columns)} |", "|" + "---|" * (1 + len(columns))]
    lines += [f"| {gpu.name} | {' | '.join(of(gpu) for of in columns.values())} |" for gpu in GPUS]
    return "\n".join(lines) + "\n"


def _draw(rows: Mapping[str, Row]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "roofline", "font.size": 9}
    figure, axes = pyplot.subplots(figsize=(8, 0.24 * len(CASES) + 0.8))
    for place, case in enumerate(reversed(CASES)):
        row = rows[f"{ASKED} bf16 {case.title}"]
        share, worse, better = (100 * value / case.target for value in (row.share, row.worse, row.better))
        axes.barh(place, share, color="#5b9a5b" if share >= 100 else "#2a6f97")
        axes.plot([worse, better], [place, place], color="#22303a", linewidth=1)
    axes.axvline(100, color="#e07a1f")
    axes.set_yticks(range(len(CASES)), [case.title for case in reversed(CASES)])
    axes.set_ylim(-0.6, len(CASES) - 0.4)
    axes.set_xlabel(f"predicted, % of what is asked of an {ASKED}, bfloat16; thin line: worse to better assumptions")
    figure.savefig(PICTURE, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def write_page(codes: Codes, rows: Mapping[str, Row]) -> None:
    targets, others = "\n".join(_against_targets(rows)), "\n".join([*_kernels(codes), *_float32(rows)])
    PAGE.write_text(_INTRODUCTION + targets + _BOUNDS + others + "\n" + _MODEL + _error(codes) + _CARDS + _cards())
    _draw(rows)

"""The table and the pictures of a run, from its file alone.

python -m benchmarks.report benchmarks/results/NAME.json     # prints the table, draws beside the file NAME.png, with a
                                                             # bar for every piece of work, and NAME-summary.png
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measuring import Timing
from benchmarks.record import Result, Results, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def title(machine: Mapping[str, object]) -> str:
    where = f"{machine['device']} ({machine['instruction_set']}), {machine['threads']} threads"
    return (
        f"hsta_kernels {machine['hsta_kernels']} against the best contender:\n"
        f"{where}, PyTorch {machine['torch']}, {machine['date']}"
    )


def table(run: Results) -> str:
    """Markdown, and below it what was left out."""
    lines = [
        "| operator | work | dtype | ours, ms [p20, p80] | best contender, ms | ratio | share of ceiling |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in run.results:
        ours = f"{1e3 * r.ours.p50:.3g} [{1e3 * r.ours.p20:.3g}, {1e3 * r.ours.p80:.3g}]"
        best = f"{r.best} {1e3 * r.contenders[r.best].p50:.3g}"
        of = [f"{100 * r.share:.0f} % of {r.ceiling}"] if r.ceiling else []
        of += [f"{r.limit_ratio:.2f}x {r.limit}"] if r.limit_ratio else []
        of += [f"{name} {value:.2f}x" for name, value in r.notes.items()]
        lines.append(
            f"| {r.operator} | {r.work} | {r.dtype} | {ours} | {best} | **{r.ratio:.2f}x** | {', '.join(of)} |"
        )
    return "\n".join([*lines, *_from_the_host(run), *_left_out(run)])


def _from_the_host(run: Results) -> list[str]:
    """What a call takes besides its kernels, and how these were timed, where that was on a GPU."""
    lines = []
    for r in run.results:
        if r.ours.end_to_end is None or r.ours.launch is None:
            continue
        facts = [f"{what} {fact}" for what, fact in r.facts.items()]
        timers = {"ours": r.ours, **r.contenders}
        hows = [f"{', '.join(n for n in timers if timers[n].how == how)} by {how}" for how in _hows(timers.values())]
        lines.append(
            f"- {r.name}: a single call of ours takes {1e3 * r.ours.end_to_end:.3g} ms, "
            f"its launches {1e3 * r.ours.launch:.3g} ms of the host; {'; '.join([*facts, *hows])}"
        )
    return ["", "End to end:", "", *lines] if lines else []


def _hows(timings: Iterable[Timing]) -> list[str]:
    return list(dict.fromkeys(timing.how for timing in timings))


def _left_out(run: Results) -> list[str]:
    lines = [f"- {name}: {reason}" for name, reason in run.left_out.items()]
    for r in run.results:
        for reason in dict.fromkeys(r.left_out.values()):
            who = ", ".join(name for name, why in r.left_out.items() if why == reason)
            lines.append(f"- {r.name}, without {who}: {reason}")
    return ["", "Left out:", "", *lines] if lines else []


def picture(run: Results, path: Path) -> None:
    """Speed over the best contender of every piece of work, as bars."""
    from matplotlib.figure import Figure

    def name(r: Result) -> str:
        return f"{r.operator}: {r.work} ({r.dtype})"

    figure = Figure(figsize=(9, 1.1 + 0.24 * len(run.results)), layout="constrained")
    axes = figure.subplots()
    colors = ["#2a6f97" if r.ratio >= 1 else "#bc4b51" for r in run.results]
    bars = axes.barh([name(r) for r in run.results], [r.ratio for r in run.results], color=colors)
    axes.bar_label(bars, [f" {r.ratio:.1f}x vs {r.best}" for r in run.results], fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0, 1.5 * max(r.ratio for r in run.results))
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.tick_params(labelsize=7)
    axes.set_xlabel("times as fast as the best contender", fontsize=8)
    figure.suptitle(title(run.machine), fontsize=9)
    _save(figure, path)


# What the summary's bars are of: the beginning of a result's operator and work.
SUMMARY = {
    "attention\nover time": ("space_time_attention", "time "),
    "attention\nover space": ("space_time_attention", "space "),
    "joint\nattention": ("space_time_attention", "joint "),
    "crossmodal\nattention": ("cross_modal_attention", ""),
    "add +\nLayerNorm": ("add_layer_norm", ""),
    "bias +\nGELU": ("bias_gelu", ""),
    "HSTA\ninference": ("HSTA", "hsta_base_224 divided inference, frozen"),
    "HSTA\ntraining": ("HSTA", "hsta_base_224 divided training"),
}


def summary(run: Results, path: Path) -> None:
    """Few bars: the geometric mean of an operator's ratios, both passes and all its shapes, one bar a dtype."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    dtypes = dict.fromkeys(r.dtype for r in run.results)
    for i, (dtype, color) in enumerate(zip(dtypes, ("#2a6f97", "#d1681c"), strict=False)):
        means = {}
        for position, (operator, work) in enumerate(SUMMARY.values()):
            of = [r for r in run.results if r.dtype == dtype and r.operator == operator and r.work.startswith(work)]
            if of:
                means[position] = statistics.geometric_mean(r.ratio for r in of)
        bars = axes.bar([x + 0.4 * i for x in means], list(means.values()), width=0.38, color=color, label=dtype)
        axes.bar_label(bars, fmt="%.1f", fontsize=12)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks([x + 0.2 * (len(dtypes) - 1) for x in range(len(SUMMARY))], SUMMARY, fontsize=12)
    axes.set_ylabel("times as fast as\nthe best contender", fontsize=13)
    axes.tick_params(axis="y", labelsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01, y=0.1)
    axes.legend(fontsize=12, frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, dpi=150)
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    run = read(path)
    print(table(run))
    picture(run, path.with_suffix(".png"))
    summary(run, path.with_name(f"{path.stem}-summary.png"))


if __name__ == "__main__":
    main()

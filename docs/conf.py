"""Sphinx makes the site of these pages, without the network: `make docs`, in the root of the repository."""

from collections.abc import Mapping
from pathlib import Path

from sphinx.application import Sphinx

import hsta_kernels
from benchmarks.record import Results, read
from benchmarks.report import table, title

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"

project = "hsta-kernels"
version = release = hsta_kernels.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = project
html_show_copyright = False
smartquotes = False  # an option is --this
myst_heading_anchors = 3
myst_enable_extensions = ["substitution"]

default_role = "code"  # single backticks in docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say more: shapes, dtypes, units
napoleon_numpy_docstring = False
# A class is documented where it is public, and PyTorch's names are not linked: the build needs no network.
nitpick_ignore_regex = [("py:.*", r"(torch|nn|Tensor)\b.*")]

RUNS = {path.stem: read(path) for path in sorted(RESULTS.glob("*.json")) if path.stem != "latest"}


def tables() -> str:
    """Every measured file as a table."""
    return "\n\n".join(f"**{name}**: {describe(run.machine)}\n\n{table(run)}" for name, run in RUNS.items())


def describe(machine: Mapping[str, object]) -> str:
    return title(machine).replace("\n", " ")


DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
WORK = (
    ("attention over time, T = 3, forward", "space_time_attention-time-T3-P1-fwd"),
    ("… backward", "space_time_attention-time-T3-P1-bwd"),
    ("attention over time, T = 8, forward", "space_time_attention-time-T8-P1-fwd"),
    ("… backward", "space_time_attention-time-T8-P1-bwd"),
    ("attention over space, N = 196, forward", "space_time_attention-space-T3-P1-fwd"),
    ("joint attention, 589 tokens, forward", "space_time_attention-joint-T3-P1-fwd"),
    ("crossmodal attention, 588 tokens, forward", "cross_modal_attention-fwd"),
    ("… against the direct form alone", "direct cross_modal_attention-fwd"),
    ("add_layer_norm, forward", "add_layer_norm-fwd"),
    ("bias_gelu, forward", "bias_gelu-fwd"),
    ("HSTA base, inference, batch 1", "model-inference-divided"),
    ("… frozen", "model-inference-divided-frozen"),
    ("HSTA base, joint attention, inference, batch 1", "model-inference-joint"),
    ("… frozen", "model-inference-joint-frozen"),
    ("HSTA base, training step, batch 2", "model-training"),
)


def gains() -> str:
    """Speed over the best contender in every measured file."""
    columns = [(name, dtype) for name in RUNS for dtype in DTYPES]
    ratios = {(name, r.name): f"{r.ratio:.2f}" for name, run in RUNS.items() for r in run.results}
    for name, run in RUNS.items():
        for r in run.results:
            if direct := [timing.p50 for who, timing in r.contenders.items() if "direct" in who]:
                ratios[name, f"direct {r.name}"] = f"{min(direct) / r.ours.p50:.1f}"
    if unknown := {case for _, case in WORK} - {name.rsplit("-", 1)[0] for _, name in ratios}:
        raise ValueError(f"no file in {RESULTS} has {', '.join(sorted(unknown))}")
    rows = [
        ["", *(f"{name}, {DTYPES[dtype]}" for name, dtype in columns)],
        ["---"] * (1 + len(columns)),
        *([what, *(ratios.get((name, f"{case}-{dtype}"), "–") for name, dtype in columns)] for what, case in WORK),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def patched(run: Results) -> dict[str, str]:
    """Of each of other people's models, what its page shows: the lines of a file that are about it."""
    found: dict[str, list[str]] = {}
    for r in run.results:
        model, work = r.work.removesuffix(" B=1").split(" ", 1)
        ours, theirs = (f"{timing.p50:.3g}" for timing in (r.ours, r.contenders[r.best]))
        row = (work, r.dtype, f"{ours} {r.facts.get('ours', '')}", theirs, r.best, f"{r.ratio:.2f}")
        memory = " ".join(f"{value:.2f}" for value in r.notes.values())
        found.setdefault(model, []).append(f"| {' | '.join((*row, memory))} |")
    head = ["| | dtype | patched, s | best other way, s | which | ratio | memory |", "|---|---|---|---|---|---|---|"]
    return {f"patched_{model}": "\n".join([*head, *rows]) for model, rows in found.items()}


PATCHED = read(RESULTS / "patched" / "x86_64_v4_amx.json")
myst_substitutions = {"gains": gains(), "measured": tables(), "patched_machine": describe(PATCHED.machine)}
myst_substitutions |= patched(PATCHED)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", shield_attribute, priority=100)


def shield_attribute(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Napoleon, which comes after, takes what stands before a colon in an attribute's first line for its type."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # an empty comment

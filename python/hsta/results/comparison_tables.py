"""A comparison as a table for a paper: LaTeX, Markdown, csv."""

from __future__ import annotations

import csv
import io
import re

from ..generated.mark import NO_EVIDENCE
from . import bootstrap
from .comparison import PERMUTATIONS, Compared, Comparison

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "Δ": r"$\Delta$",
    "−": "$-$",
    "<": "$<$",
    ">": "$>$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def markdown(comparison: Comparison) -> str:
    """A table of GitHub's Markdown, and what its figures are under it."""
    header, *rows = _cells(comparison)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    table = "".join(f"| {' | '.join(map(_markdown, line))} |\n" for line in lines)
    return table + "\n" + _markdown(" ".join(_sentences(comparison))) + "\n"


def latex(comparison: Comparison) -> str:
    """A ``table`` for the package booktabs, with a caption."""
    header, *rows = ([_latex(cell) for cell in line] for line in _cells(comparison))
    lines = [" & ".join(line) + r" \\" for line in (header, *rows)]
    caption = _latex(" ".join(_sentences(comparison)))
    return "\n".join(
        [
            "% \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def comma_separated(comparison: Comparison) -> str:
    """A row for each evaluation, every digit, and how the figures were made in columns of their own."""
    header = ["evaluation", "model", "protocol", "seed", "generated_data", "shuffled_labels"]
    for name in comparison.names:
        header += [f"{name}{end}" for end in ("", "_low", "_high", "_difference", "_difference_low")]
        header += [f"{name}_difference_high", f"{name}_p"]
    header += ["clips", "subjects", "level", "draws", "permutations", "exact", "random_seed"]
    test = [2**comparison.subjects if comparison.exact else PERMUTATIONS, comparison.exact, bootstrap.SEED]
    made = [comparison.clips, comparison.subjects, bootstrap.LEVEL, bootstrap.DRAWS, *test]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    for row in comparison.rows:
        metrics = row.evaluated.metrics
        cells: list[object] = [row.evaluated.folder, *(metrics.get(name, "") for name in header[1:6])]
        for name, figure in row.figures.items():
            cells += [figure, *(row.intervals[name] if row.intervals else ("", ""))]
            difference = row.differences.get(name)
            if difference is None:
                cells += [""] * 4
            else:
                cells += [difference.value, *(difference.interval or ("", "")), difference.p_value]
        writer.writerow([*cells, *made])
    return table.getvalue()


def _cells(comparison: Comparison) -> list[list[str]]:
    """The header and a row for each evaluation."""
    header = ["evaluation", "model", "protocol", "seed"]
    for written in comparison.names.values():
        header += [written, f"Δ{written}", "p"]
    return [header, *(_row(row, comparison) for row in comparison.rows)]


def _row(row: Compared, comparison: Comparison) -> list[str]:
    def number(value: float, sign: str = "") -> str:
        return f"{value:{sign}.3f}".replace("-", "−")

    def with_ends(value: float, ends: tuple[float, float] | None, sign: str = "") -> str:
        told = number(value, sign)
        return told + (f" [{', '.join(number(end, sign) for end in ends)}]" if ends else "")

    cells = [str(row.evaluated.folder), *(str(row.evaluated.metrics.get(n, "")) for n in ("model", "protocol", "seed"))]
    for name in comparison.names:
        cells.append(with_ends(row.figures[name], row.intervals[name] if row.intervals else None))
        difference = row.differences.get(name)
        if difference is None:
            cells += ["", ""]
        else:
            cells.append(with_ends(difference.value, difference.interval, "+"))
            cells.append("< 0.001" if difference.p_value < 0.001 else f"{difference.p_value:.3f}")
    return cells


def _sentences(comparison: Comparison) -> list[str]:
    return [*comparison.sentences, *([f"Made from {NO_EVIDENCE}."] if comparison.generated else [])]


def _markdown(text: str) -> str:
    """As it is written: neither the end of a cell, nor emphasis, code, a link or HTML."""
    return text if re.fullmatch("-+:?", text) else re.sub(r"([\\|`*_<>]|\](?=\())", r"\\\1", text.replace("\n", " "))


def _latex(text: str) -> str:
    told = "".join(LATEX.get(sign, sign) for sign in text.replace("\n", " "))
    return f"{{}}{told}" if told.startswith(("[", "*")) else told  # else these go with the end of the row before

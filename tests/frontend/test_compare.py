"""`hsta compare`: evaluations of the same clips side by side, and of nothing else."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from hsta.cli import main
from hsta.results.bootstrap import Subjects, draw, figures
from hsta.results.comparison import compare, permutation_test
from hsta.results.evaluated import Evaluated

from tests.frontend.evaluations import NAMES, certain, drawn_predictions, write_evaluation


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """The first tells half of the clips right, the second most, the third is the first."""
    root = tmp_path_factory.mktemp("evaluations")
    rng = np.random.default_rng(2)
    first = drawn_predictions(rng, 8, 0.4)
    better = [replace(p, probabilities=certain(p.truth, 3)) if rng.random() < 0.7 else p for p in first]
    folders = []
    for name, predictions in (("a_1", first), ("b|2", better[::-1]), ("[c]", first)):
        (root / name).mkdir()
        folders.append(write_evaluation(root / name, predictions, model="hsta_tiny_224", seed=0))
    return folders


def compared(folders, *more):
    return main(["compare", *map(str, folders), *more])


def test_figures_are_those_of_the_pairs(evaluations):
    comparison = compare([Evaluated.read(folder) for folder in evaluations])
    first, second, third = comparison.rows
    assert not first.differences
    one, two = (Subjects.of(row.evaluated.predictions(), NAMES, False) for row in (first, second))
    assert one.people == two.people  # though the second has its clips the other way round
    p_values = permutation_test(one, two)
    drawn = [figures(draw(side.counts), False) for side in (one, two)]
    for name in ("uf1", "uar"):
        difference = second.differences[name]
        assert difference.value == pytest.approx(getattr(two.scores, name) - getattr(one.scores, name))
        np.testing.assert_allclose(
            difference.interval, np.quantile(drawn[1][name] - drawn[0][name], [0.025, 0.975]), rtol=1e-12
        )
        assert difference.interval[0] > 0 and difference.p_value == p_values[name] < 0.05
        width = difference.interval[1] - difference.interval[0]
        assert width < sum(row.intervals[name][1] - row.intervals[name][0] for row in (first, second))
        assert third.differences[name].value == 0 == third.differences[name].interval[1]
        assert third.differences[name].p_value == 1
    assert (comparison.subjects, comparison.exact) == (8, True)


def test_markdown_is_a_table_of_as_many_cells(evaluations, capsys):
    assert compared(evaluations) == 0
    said = capsys.readouterr().out
    table, note = said.split("\n\n")
    lines = [line.replace(r"\|", "").split("|") for line in table.splitlines()]
    assert {len(line) for line in lines} == {12} and len(lines) == 5
    assert r"a\_1" in table and r"b\|2" in table and "[c]" in table
    assert [cell.strip() for cell in lines[0][1:-1]] == [
        "evaluation", "model", "protocol", "seed", "UF1", "ΔUF1", "p", "UAR", "ΔUAR", "p"
    ]  # fmt: skip
    for word in ("8 subjects", "all 256 permutations", "2,000 draws, seed 0", "not corrected"):
        assert word in note, word


def test_csv_has_every_digit_and_how_they_were_made(evaluations, tmp_path):
    output = tmp_path / "table.csv"
    assert compared(evaluations, "--format", "csv", "--output", str(output)) == 0
    rows = list(csv.DictReader(io.StringIO(output.read_text(encoding="utf-8"))))
    comparison = compare([Evaluated.read(folder) for folder in evaluations])
    for row, told in zip(rows, comparison.rows, strict=True):
        assert row["evaluation"] == str(told.evaluated.folder)
        assert (float(row["uar"]), float(row["uar_low"]), float(row["uar_high"])) == (
            told.figures["uar"], *told.intervals["uar"]
        )  # fmt: skip
        if told.differences:
            assert float(row["uf1_difference"]) == told.differences["uf1"].value
            assert float(row["uf1_p"]) == told.differences["uf1"].p_value
        else:
            assert row["uf1_difference"] == row["uf1_p"] == ""
        assert [row[name] for name in ("subjects", "draws", "permutations", "exact")] == ["8", "2000", "256", "True"]


def test_latex_is_escaped_and_its_rows_have_as_many_cells(evaluations, capsys):
    assert compared(evaluations, "--format", "latex") == 0
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.endswith(r" \\")]
    assert [row.count("&") for row in rows] == [9] * 4
    assert r"\begin{tabular}{lrrrrrrrrr}" in said
    assert r"$\Delta$UF1" in rows[0] and r"a\_1" in rows[1] and "[c]" in rows[3]
    assert said.count("{") == said.count("}") and "95\\% intervals" in said


def test_other_clips_and_labels_are_refused_with_the_first_three(evaluations, tmp_path, capsys):
    first = evaluations[0]
    predictions = Evaluated.read(first).predictions()

    def refused(changed, names=NAMES):
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        assert compared([first, write_evaluation(other, changed, names)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    lost = predictions[4:]
    said = refused(lost)
    for p in predictions[:3]:
        assert f"{p.dataset} {p.subject} {p.clip} is {NAMES[p.truth]} in {first} and not there in" in said
    assert said.count(" is ") == 3 and "; and 1 more" in said
    one = predictions[5]
    other = (one.truth + 1) % 3
    said = refused([*predictions[:5], replace(one, truth=other), *predictions[6:]])
    assert f"{one.clip} is {NAMES[one.truth]} in {first} and {NAMES[other]} in" in said and "more" not in said
    assert "is not there in" in refused([*predictions, replace(one, clip="EP99")])
    assert "the same classes in the same order" in refused(predictions, NAMES[::-1])
    units = [replace(p, truth=(p.truth,)) for p in predictions]
    assert "(action units)" in refused(units)


def test_action_units_are_compared_by_their_mean_f1(tmp_path, capsys):
    rng = np.random.default_rng(0)
    predictions = [replace(p, truth=(p.truth,)) for p in drawn_predictions(rng, 20, 0.5)]
    folders = []
    for name, right in (("a", 0.0), ("b", 0.6)):
        (tmp_path / name).mkdir()
        told = [replace(p, probabilities=certain(p.truth, 3)) if rng.random() < right else p for p in predictions]
        folders.append(write_evaluation(tmp_path / name, told))
    assert compared(folders) == 0
    said = capsys.readouterr().out
    assert "| F1 | ΔF1 | p |" in said and "10,000 random permutations, seed 0" in said


def test_one_evaluation_is_not_compared(evaluations, capsys):
    assert compared(evaluations[:1]) == 2
    assert "evaluations must be two or more, got 1" in capsys.readouterr().err

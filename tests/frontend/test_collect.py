"""Folds that are done one at a time, in any order or at the same time, are put together as if they were one run."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from hsta.cli import main, run_folder
from hsta.cli.evaluate import Evaluate
from hsta.cli.options import DataOptions, ModelOptions
from hsta.data.registry import read_dataset
from hsta.files import write_text
from hsta.results.evaluation import evaluate_fold
from hsta.results.versions import versions
from hsta.training.recipe import Recipe

import hsta_kernels

# Each process is forked from one that has loaded the libraries and computed nothing.
AT_ONCE = """
import os, sys
import hsta_kernels
import hsta.data.registry, hsta.results.report, hsta.training.loop
from hsta.cli import main
from hsta.data.registry import read_dataset

folds, *arguments = sys.argv[1:]
children = {}
for fold in folds.split(","):
    child = os.fork()
    if not child:
        os._exit(main([*arguments, "--fold", fold]))
    children[child] = fold
ended = [os.wait() for _ in children]
print("codes", sorted((int(children[child]), os.waitstatus_to_exitcode(status)) for child, status in ended))
"""


@pytest.fixture(scope="module")
def folds(short, tmp_path_factory):
    """Folds 3 and 1 of three."""
    output = tmp_path_factory.mktemp("folds") / "run"
    for fold in ("3", "1"):
        assert main([*short, "--output", str(output), "--fold", fold]) == 0
    return output


@pytest.fixture
def begun(folds, tmp_path):
    """A copy of that, to change."""
    return shutil.copytree(folds, tmp_path / "run")


def refused(line, capsys):
    """The complaint of a command that leaves 2."""
    capsys.readouterr()
    assert main([str(word) for word in line]) == 2
    (said,) = (text for text in capsys.readouterr().err.splitlines() if not text.startswith("note: "))
    return said


def contents(run):
    """Every file; of the arguments, those that are not of the place."""
    files = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    arguments = json.loads(files.pop("config.json"))
    return files, {name: value for name, value in arguments.items() if name not in ("output", "resume")}


def test_folds_in_any_order_become_the_whole(short, evaluated, begun, capsys):
    assert {path.name for path in begun.iterdir()} == {"attention", "config.json", "curves", "folds"}
    assert refused(["collect", begun], capsys) == f"hsta: 1 of 3 folds are missing in {begun}: 2 (casme3-spNO.2)"
    assert main([*short, "--output", str(begun), "--fold", "2"]) == 0
    assert f"fold 2 of 3, casme3-spNO.2, is done; when all are: hsta collect {begun}\n" in capsys.readouterr().out
    assert main(["collect", str(begun)]) == 0
    assert "casme3, 2 classes: UF1 0." in capsys.readouterr().out
    assert contents(begun) == contents(evaluated)
    assert main(["collect", str(begun)]) == 0  # once more
    assert contents(begun) == contents(evaluated)


def test_processes_at_the_same_time_in_one_folder(short, evaluated_by_one_thread, tmp_path):
    """The folder is begun by one of four; of the two that want one fold the second is refused or finds it done."""
    output = tmp_path / "run"
    child = subprocess.run(
        [sys.executable, "-c", AT_ONCE, "1,2,3,3", *short, "--output", str(output)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads are lost in a fork
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    codes = child.stdout.splitlines()[-1]
    assert codes in ("codes [(1, 0), (2, 0), (3, 0), (3, 0)]", "codes [(1, 0), (2, 0), (3, 0), (3, 2)]"), child.stderr
    assert main(["collect", str(output)]) == 0
    assert contents(output) == contents(evaluated_by_one_thread)


def test_a_fold_that_another_process_is_at_is_refused(short, begun, capsys):
    line = [*short, "--output", begun, "--fold", "2"]
    with FileLock(begun / "folds" / ".casme3-spNO.2.lock"):
        assert refused(line, capsys) == (
            f"hsta: another process is at work on the fold {begun / 'folds' / 'casme3-spNO.2'}: let it end"
        )
        assert "1 of 3 folds are missing" in refused(["collect", begun], capsys)
    assert main([str(word) for word in line]) == 0


def test_a_run_that_another_process_begins_meanwhile_is_joined_or_refused(short, tmp_path, monkeypatch, capsys):
    """Between the look for a run and its beginning, while the data are read, another process begins one."""
    output = tmp_path / "run"
    read, begun = run_folder._contents, []

    def meanwhile(*arguments):
        digests = read(*arguments)
        if not begun:
            begun.append(True)
            assert main([*short, "--output", str(output), "--fold", "1"]) == 0
        return digests

    monkeypatch.setattr(run_folder, "_contents", meanwhile)
    assert main([*short, "--epochs", "3", "--output", str(output), "--fold", "2"]) == 2
    assert "has epochs 2, not 3" in capsys.readouterr().err
    assert {path.name for path in output.iterdir()} == {"attention", "config.json", "curves", "folds"}
    assert len(list((output / "folds").iterdir())) == 2


def test_one_process_at_a_time_begins_a_run_or_puts_folds_together(short, folds, tmp_path, monkeypatch):
    output, alone = tmp_path / "run", []

    def write(path, text):
        alone.append(path.name)
        with pytest.raises(Timeout):
            FileLock(output / ".lock", timeout=0).acquire()
        write_text(path, text)

    monkeypatch.setattr(run_folder, "write_text", write)
    assert main([*short, "--output", str(output), "--fold", "2"]) == 0
    shutil.copytree(folds / "folds", output / "folds", dirs_exist_ok=True)
    monkeypatch.setattr("hsta.results.report.write_text", write)
    assert main(["collect", str(output)]) == 0
    assert alone == ["config.json", "metrics.json"]


def test_the_devices_are_those_of_the_folds(evaluated, tmp_path):
    output = shutil.copytree(evaluated, tmp_path / "run")
    record = output / "folds" / "casme3-spNO.2.json"
    record.write_text(record.read_text().replace('"device": "cpu"', '"device": "cuda:0"'))
    assert main(["collect", str(output)]) == 0
    assert json.loads((output / "metrics.json").read_text())["device"] == "cpu, cuda:0"


def test_a_fold_that_is_done_is_found_done(short, begun, monkeypatch):
    before = contents(begun)
    monkeypatch.setattr("hsta.results.evaluation.fit", None)  # cannot be called
    assert main([*short, "--output", str(begun), "--fold", "3"]) == 0
    assert contents(begun) == before


def test_what_is_not_of_the_run_does_not_join_it(short, people, begun, tmp_path, monkeypatch, capsys):
    before = contents(begun)
    line = [*short, "--output", begun, "--fold", "2"]
    assert "has epochs 2, not 3" in refused([*line, "--epochs", "3"], capsys)
    data = shutil.copytree(people, tmp_path / "data")
    frame = read_dataset("casme3", data).clips[5].frames[1]
    frame.write_bytes(frame.read_bytes() + b"more")
    assert "the data are not those" in refused([*line, "--data", data], capsys)
    monkeypatch.setattr(hsta_kernels, "__version__", "0.0.9")
    assert f"has hsta-kernels {before[1]['versions']['hsta-kernels']}, not 0.0.9" in refused(line, capsys)
    assert "not 0.0.9" in refused(["collect", begun], capsys)
    assert contents(begun) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "of seed 1, not 0"),
        ({"torch": "2.0"}, "of torch 2.0, not"),
        ({"digest of the data": "0"}, "of digest of the data 0, not"),
        ({"attention": None}, "of attention None, not divided"),
    ],
)
def test_folds_brought_from_another_run_are_refused(begun, change, message, capsys):
    folder = begun / "folds"
    for ending in ("csv", "json"):
        shutil.copy(folder / f"casme3-spNO.1.{ending}", folder / f"casme3-spNO.2.{ending}")
    assert "casme3-spNO.2.csv holds other clips" in refused(["collect", begun], capsys)
    record = folder / "casme3-spNO.2.json"
    values = json.loads(record.read_text())
    record.write_text(json.dumps(values | {"run": values["run"] | change}))
    said = refused(["collect", begun], capsys)
    assert said.startswith(f"hsta: {folder / 'casme3-spNO.2.csv'} is of another run, {message}")
    record.write_text("{}")
    assert "casme3-spNO.2.json is damaged" in refused(["collect", begun], capsys)
    record.unlink()
    assert "casme3-spNO.2.json is missing" in refused(["collect", begun], capsys)
    assert not (begun / "metrics.json").exists()


def test_arguments_come_back_from_json_as_they_were(tmp_path):
    command = Evaluate(
        DataOptions(Path("casme2"), "casme2", "action-units", also=("samm=SAMM", "smic=SMIC"), units=(1, 12)),
        tmp_path,
        "cross-dataset",
        test_on=("samm",),
        model=ModelOptions(image_size=32, start_from=Path("weights"), depth=((1, 2), (1, 1))),
        recipe=Recipe(epochs=3, warmup_epochs=1, balance="weights"),
        tuned=Path("tuning"),
        resume=True,
    )
    values = {"command": "evaluate", "versions": versions(), "contents": {}, **asdict(command)}
    (tmp_path / "config.json").write_text(json.dumps(values, default=str))
    assert run_folder.restored(Evaluate, tmp_path) == command


def test_several_seeds_of_a_fold(short, tmp_path, monkeypatch, capsys):
    """Fold K is that of each seed, and what is put together is what one process writes."""
    seen = []

    def fold_of_seeds(*arguments, directory, **options):
        seen.append(directory.name)
        return evaluate_fold(*arguments, directory=directory, **options)

    monkeypatch.setattr("hsta.results.evaluation.evaluate_fold", fold_of_seeds)
    line = [*short, "--epochs", "1", "--warmup-epochs", "0", "--repeats", "2", "--protocol", "leave-subjects-out"]
    line += ["--folds", "2", "--output", tmp_path / "run"]
    assert main([*map(str, line), "--fold", "2"]) == 0
    assert seen == ["group-2", "group-2"]
    assert "1 of 2 folds are missing" in refused(["collect", tmp_path / "run"], capsys)
    assert main([*map(str, line), "--fold", "1"]) == 0
    assert main(["collect", str(tmp_path / "run")]) == 0
    assert main([*map(str, line[:-1]), str(tmp_path / "whole")]) == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert main(["report", str(tmp_path / "whole")]) == 0
    assert "over 2 seeds</h1>" in (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")


def test_folds_that_are_drawn_anew_do_not_join(short, people, tmp_path, capsys):
    """Of tables that somebody else drew one changes: the clips are the same, and a model would learn from others."""
    data = shutil.copytree(people, tmp_path / "data")
    (data / "folds").mkdir()
    (annotation,) = data.glob("*.csv")
    header, *rows = annotation.read_text(encoding="utf-8-sig").splitlines(keepends=True)

    def draw(name, rows):
        (data / "folds" / f"{name}.csv").write_text("".join([header, *rows]), encoding="utf-8")

    for name, drawn in {"train_1": rows[2:], "test_1": rows[:2], "train_2": rows[:8], "test_2": rows[8:]}.items():
        draw(name, drawn)
    line = [*short, "--data", data, "--protocol", "authors-folds", "--output", tmp_path / "run"]
    assert main([*map(str, line), "--fold", "1"]) == 0
    draw("train_2", rows[:7])
    assert "begun with: changed: folds. Put" in refused([*line, "--fold", "2"], capsys)

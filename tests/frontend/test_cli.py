"""What the command line says: help, and one line where something is wrong."""

import os
import shutil
import subprocess
import sys

import hsta.training.loop
import pytest
from hsta.cli import main
from hsta.data.registry import read_dataset

COMMANDS = (
    "check",
    "generate",
    "prepare",
    "shard",
    "train",
    "tune",
    "evaluate",
    "collect",
    "report",
    "compare",
    "predict",
    "serve",
    "export",
    "demo",
)
TRAIN = "train --data {people} --output {run} --accelerator cpu"
EVALUATE = "evaluate --data {people} --output {run} --accelerator cpu"
PREDICT = "predict {film} --checkpoint {trained}"

WRONG = {
    "": f"Expected one of {{{', '.join(COMMANDS)}}}",
    "learn": "Unrecognized options: learn",
    "train": "Missing from hsta train: --output PATH --data PATH",
    "demo --output": "Missing value for argument",
    f"{TRAIN} --epoch 3": "Unrecognized options: --epoch, 3; Perhaps you meant: --epochs INT",
    f"{TRAIN} --epochs many": "Error parsing --epochs: invalid literal for int() with base 10: 'many'",
    f"{TRAIN} --attention both": "invalid choice 'both' for argument '--attention'",
    f"{TRAIN} --depth 1 2 3": "Error parsing --depth",
    f"{TRAIN} --epochs 0": "epochs must be at least 1, got 0",
    f"{TRAIN} --warmup-epochs 150": "warmup_epochs must be from 0 to below epochs 150, got 150",
    f"{TRAIN} --drop-rate 2": "drop_rate must be a number in [0, 1), got 2.0",
    f"{TRAIN} --num-frames 3": "num_frames must be a multiple of tubelet_size 2, got 3",
    f"{TRAIN} --model hsta_huge": "there is no model 'hsta_huge'; did you mean",
    f"{TRAIN} --seed -1": "seed must be 0 or more, got -1",
    f"{TRAIN} --workers -1": "workers must be 0 or more, got -1",
    f"{TRAIN} --dataset nothing": "unknown data set 'nothing'; known: casme2, samm, smic, casme3",
    f"{TRAIN} --devices some": "cannot use some device(s) of cpu",
    f"{TRAIN} --resume --overwrite": "resume and overwrite exclude each other",
    "train --data {people} --output {film}": "is a file; the run needs a folder",
    "check --data {missing}": "no such folder: {missing}",
    "check --data {people} --classes 5": "casme3 has no classes '5'; known: 7, 3, objective",
    "train --data {missing} --output {run}": "no such folder: {missing}",
    "train --data {empty} --output {run}": "no annotation table (csv or xlsx) in {empty}",
    f"{EVALUATE} --protocol random": "invalid choice 'random' for argument '--protocol'",
    f"{EVALUATE} --folds 2": "--folds and --protocol leave-subjects-out go together",
    f"{EVALUATE} --protocol leave-subjects-out": "--folds and --protocol leave-subjects-out go together",
    f"{EVALUATE} --protocol leave-subjects-out --folds 9": "folds must be from 2 to the 3 subjects, got 9",
    f"{EVALUATE} --fold 0": "fold must be from 1 to 3, the number of folds, got 0",
    f"{EVALUATE} --fold 4": "fold must be from 1 to 3, the number of folds, got 4",
    f"{EVALUATE} --fold 1 --overwrite": "--fold and --overwrite exclude each other",
    f"{EVALUATE} --repeats 0": "repeats must be at least 1, got 0",
    f"{EVALUATE} --test-on samm": "--test-on goes with --protocol cross-dataset",
    f"{EVALUATE} --protocol cross-dataset": "at least two data sets are needed to test one on the others, got casme3",
    f"{EVALUATE} --protocol authors-folds --also samm={{empty}}": "reads the folds of one data set",
    f"{TRAIN} --also samm": "also must be NAME=FOLDER, such as samm=SAMM, got samm",
    f"{TRAIN} --also casme3={{people}}": "the data set casme3 is given twice",
    f"{TRAIN} --preset slow": "invalid choice 'slow' for argument '--preset'",
    f"{TRAIN} --augment 2": "augment must be in [0, 1], got 2.0",
    f"{TRAIN} --start-from {{missing}}": "cannot start from {missing}: there is no checkpoint {missing}",
    "collect {empty}": "no run in {empty}: {empty}/config.json is missing",
    "collect {trained}": "config.json is not of hsta evaluate",
    "report": "Missing from hsta report: PATH",
    "report {missing}": "no such folder: {missing}",
    "report {empty}": "no metrics.json in {empty}",
    "report {trained}": "no metrics.json in",
    "compare": "evaluations must be two or more, got 0",
    "compare {empty}": "evaluations must be two or more, got 1",
    "compare {empty} {missing}": "no metrics.json in {empty}",
    "compare {empty} {empty} --format pdf": "invalid choice 'pdf' for argument '--format'",
    "predict --checkpoint {trained}": "Missing from hsta predict: PATH",
    f"{PREDICT} --fps 0": "fps must be a positive number, got 0",
    f"{PREDICT} --truth {{missing}}": "--truth and --threshold go with --spot",
    f"{PREDICT} --spot --truth {{missing}}": "No such file or directory: {missing}",
    f"{PREDICT} --spot --onset 3 --offset 4": "--spot finds onset, apex and offset",
    "predict {film} {film} --checkpoint {trained} --onset 3 --offset 4": "are of one film, got 2",
    "predict webcam --fps 30 --checkpoint {trained}": "--fps is not for a webcam",
    "predict {film} --checkpoint {missing}": "no checkpoint in {missing}",
    "predict {film} --checkpoint {empty}": "no checkpoint in {empty}",
    "predict {missing} --checkpoint {trained}": "no such file or folder: {missing}",
    "predict {empty} --checkpoint {trained}": "no images (.avif, .bmp, .dib",
    PREDICT: "cannot read {film} as a video",
    "serve --checkpoint {empty}": "no checkpoint in {empty}",
    "serve --checkpoint {trained} --megabytes 0": "megabytes must be a positive number, got 0",
    "serve --checkpoint {trained} --frames 1": "frames must be 2 or more, got 1",
    "serve --checkpoint {trained} --at-once 0": "at_once must be 1 or more, got 0",
    "serve --checkpoint {trained} --port 65536": "port must be from 0 to 65535, got 65536",
    "generate --output {film}": "is a file; the data set needs a folder",
    "generate --output {run} --subjects 0": "subjects must be at least 1, got 0",
    "generate --output {run} --emotions joy": "emotions must be some of others, disgust",
    "prepare --data {people} --output {film}": "is a file; what is prepared needs a folder",
    "prepare --data {people} --output {run} --image-size 8": "image_size must be 32 or more, got 8",
    "prepare --data {people} --output {run} --workers -1": "workers must be 0 or more, got -1",
    "prepare --data {missing} --output {run}": "no such folder: {missing}",
    "prepare --data {people} --output {run} --detector eye": "invalid choice 'eye' for argument '--detector'",
    "demo --output {run} --seed -1": "seed must be 0 or more, got -1",
}


@pytest.mark.parametrize("line", WRONG)
def test_one_line_and_exit_code_2(line, people, trained, tmp_path, capsys):
    paths = {"people": people, "trained": trained, **{n: tmp_path / n for n in ("run", "film", "empty", "missing")}}
    paths["film"].write_text("no video")
    paths["empty"].mkdir()
    assert main([word.format(**paths) for word in line.split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    complaint = [text for text in said.err.splitlines() if not text.startswith("note: ")]
    assert len(complaint) == 1, said.err
    message = WRONG[line]
    for name in ("missing", "empty", "film"):
        message = message.replace(f"{{{name}}}", str(paths[name]))
    assert complaint[0].startswith("hsta: ")
    assert message in complaint[0]
    assert not paths["run"].exists()


def test_as_a_program():
    """Through the interpreter: exit code, nothing on stdout, no traceback."""
    child = subprocess.run([sys.executable, "-m", "hsta", "trane"], capture_output=True, text=True)
    assert (child.returncode, child.stdout, child.stderr.count("\n")) == (2, "", 1)
    assert child.stderr.startswith("hsta: Unrecognized options: trane")


@pytest.mark.parametrize("mine", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_waiting_threads_spin_briefly_unless_the_user_says_how(mine, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # restored afterwards, whatever main() sets
        monkeypatch.delenv(name)
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    assert main(["--help"]) == 0
    found = {name: os.environ[name] for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in os.environ}
    assert found == (mine or {"GOMP_SPINCOUNT": "20000"})


SLOW = "aiohttp optuna torch hsta_kernels lightning_fabric tensorboard numpy pandas openpyxl cv2 skimage matplotlib av"
AT_ONCE = {
    "--help": 0,
    **{f"{command} --help": 0 for command in COMMANDS},
    "train": 2,
    "train --data nowhere --output run --seed -1": 2,
    "train --data nowhere --output run --workers -1": 2,
    "train --data nowhere --output run": 2,
    "train --data . --dataset nothing --output run": 2,
    "check --data . --dataset nothing": 2,
    "evaluate --data nowhere --output run --folds 2": 2,
    "tune --data nowhere --output run": 2,
    "tune --data . --output run --search epochs": 2,
    "collect nowhere": 2,
    "prepare --data nowhere --output run": 2,
    "prepare --data . --output run --workers -1": 2,
    "demo --output run --seed -1": 2,
    "generate --output run --subjects 0": 2,
    "generate --output run --emotions joy": 2,
    "predict": 2,
    "predict nowhere.mp4 --checkpoint .": 2,
    "predict . --checkpoint .": 2,
    "predict . --checkpoint . --spot --fps -1": 2,
    "predict . . --checkpoint .": 2,  # no checkpoint there
    "predict webcam --checkpoint . --onset 3": 2,
    "serve --checkpoint nowhere": 2,
    "serve --checkpoint . --timeout nan": 2,
    "report nowhere": 2,
    "compare nowhere .": 2,
    "export . --output m.pt": 2,
    "export . --output m.onnx": 2,
}


def test_help_and_complaints_wait_for_no_library_and_fit_a_plain_terminal():
    program = """
import sys
from hsta.cli import main
slow, code, line = sys.argv[1:]
assert main(line.split()) == int(code)
loaded = set(slow.split()) & set(sys.modules)
assert not loaded, loaded
"""
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for line, code in AT_ONCE.items():
        call = [sys.executable, "-c", program, SLOW, str(code), line]
        child = subprocess.run(call, capture_output=True, text=True, env=plain)
        assert child.returncode == 0, (line, child.stderr)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("check", "--dataset --data --classes --json"),
        ("generate", "--format --output --subjects --clips-per-subject --seed"),
        ("prepare", "--dataset --data --output --image-size --detector --workers --overwrite"),
        ("shard", "--data --output --shards --overwrite"),
        (
            "train",
            "--dataset --data --classes --model --output --epochs --resume "
            "--accelerator --devices --num-nodes --precision --strategy",
        ),
        ("tune", "--dataset --data --protocol --folds --fold --output --search --trials --inner-folds --resume"),
        ("evaluate", "--dataset --data --protocol --folds --fold --output --tuned --resume --shuffle-labels"),
        ("predict", "--checkpoint --json --output --onset --apex --offset --fps --spot --threshold --truth --seconds"),
        ("serve", "--checkpoint --host --port --detector --megabytes --seconds --frames --timeout --at-once --memory"),
        ("report", "--output"),
        ("compare", "--format --output"),
        ("export", "--output --overwrite"),
        ("demo", "--output --seed"),
    ],
)
def test_help_tells_every_option(command, options, capsys):
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    for option in options.split():
        assert f" {option} " in said, option
    assert "{None}" not in said


def test_an_error_in_a_loading_process_is_one_line(people, tmp_path, capsys):
    copy = tmp_path / "people"
    shutil.copytree(people, copy)
    broken = next(copy.rglob("*.jpg")).parent
    for image in broken.iterdir():
        image.write_bytes(b"")
    line = f"train --data {copy} --output {tmp_path / 'run'} --accelerator cpu --image-size 32 --num-frames 2"
    options = "--depth 1 1 --epochs 1 --warmup-epochs 0 --batch-size 4 --workers 1"
    assert main([*line.split(), *options.split()]) == 2
    complaint = [text for text in capsys.readouterr().err.splitlines() if text.startswith("hsta: ")]
    assert len(complaint) == 1
    assert complaint[0].startswith(f"hsta: no frame of the clip can be read: not an image, or a broken one: {broken}")
    assert "Traceback" not in complaint[0]


def test_help_names_the_commands(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert command in said


def test_ctrl_c_is_exit_code_130(people, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("hsta.results.evaluation.fit", interrupted)
    assert main(["evaluate", "--data", str(people), "--output", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err.endswith("\nhsta: stopped: the same command with --resume goes on from here\n")
    monkeypatch.setattr("hsta.generated.writer.generate_dataset", interrupted)
    assert main(["generate", "--output", str(tmp_path / "faces")]) == 130
    assert capsys.readouterr().err == "\nhsta: stopped\n"


def test_an_error_of_the_program_is_not_hidden(people, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise AssertionError("a fault of ours")

    monkeypatch.setattr(hsta.training.loop, "fit", broken)
    with pytest.raises(AssertionError, match="a fault of ours"):
        main(["train", "--data", str(people), "--output", str(tmp_path / "run")])


def test_generate_writes_what_train_reads(tmp_path, capsys):
    line = f"generate --format casme3 --output {tmp_path} --subjects 2 --clips-per-subject 2 --seed 5 --image-size 32"
    assert main(line.split()) == 0
    assert capsys.readouterr().out.startswith("4 generated clips: ")
    index = read_dataset("casme3", tmp_path)
    assert len(index.clips) == 4
    assert {clip.subject for clip in index.clips} == {"spNO.1", "spNO.2"}
    assert index.generated

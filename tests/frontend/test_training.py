"""A training that was stopped ends with the bits of one that was not, and what it wrote is never lost."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import safetensors
import safetensors.torch
import torch
from hsta.cli import main
from hsta.errors import UserError
from hsta.training.checkpoints import load_checkpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hsta_kernels

STATE, WEIGHTS = "training_state.safetensors", "checkpoint/model.safetensors"
STOP = 5  # in the second of the three steps of the second epoch

KILLED = """
import os, signal, sys
import hsta_kernels
from hsta.cli import main

forward, steps = hsta_kernels.HSTA.forward, 0

def killed(*inputs):
    global steps
    steps += 1
    if steps == {stop}:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(*inputs)

hsta_kernels.HSTA.forward = killed
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def interrupt(monkeypatch):
    """Ctrl-C in the given step of what runs next."""
    forward = hsta_kernels.HSTA.forward
    # Jobs that a shell starts in the background ignore SIGINT from birth.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    def at(stop):
        steps = iter(range(1, stop + 1))

        def interrupted(*inputs):
            if next(steps) == stop:
                signal.raise_signal(signal.SIGINT)
            return forward(*inputs)

        monkeypatch.setattr(hsta_kernels.HSTA, "forward", interrupted)

    yield at
    signal.signal(signal.SIGINT, handler)


def epochs_done(run):
    with safetensors.safe_open(run / STATE, "pt") as file:
        return int(file.metadata()["epochs_done"])


def assert_same(run, other):
    """Weights and AdamW's moments, bit for bit."""
    for name in (STATE, WEIGHTS):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


def scalars(run, name):
    events = EventAccumulator(str(run / "log"))
    events.Reload()
    return sorted((event.step, event.value) for event in events.Scalars(name))


def test_killed_in_the_middle_of_an_epoch_and_resumed(learning, trained, tmp_path):
    arguments = ["train", *learning, "--output", str(tmp_path / "run")]
    child = subprocess.run(
        [sys.executable, "-c", KILLED.format(stop=STOP), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert epochs_done(tmp_path / "run") == 1
    assert main([*arguments, "--resume"]) == 0
    assert_same(tmp_path / "run", trained)
    assert scalars(tmp_path / "run", "loss") == scalars(trained, "loss")


def test_ctrl_c_and_resumed_with_other_workers(learning, trained, tmp_path, interrupt, monkeypatch, capsys):
    arguments = ["train", *learning, "--output", str(tmp_path / "run")]
    interrupt(STOP)
    assert main(arguments) == 130
    assert capsys.readouterr().err.endswith("hsta: stopped: the same command with --resume goes on from here\n")
    monkeypatch.undo()
    assert main([*arguments, "--resume", "--workers", "1"]) == 0
    assert_same(tmp_path / "run", trained)


def test_stopped_while_a_checkpoint_is_written(learning, trained, tmp_path, monkeypatch):
    arguments = ["train", *learning, "--output", str(tmp_path / "run")]
    save, saved = hsta_kernels.tensor_files.save, []

    def half(path, tensors, metadata):
        save(path, tensors, metadata)
        saved.append(path)
        if len(saved) == 4:  # in turns, checkpoint and state: the state after the second epoch
            os.truncate(path, path.stat().st_size // 2)
            raise KeyboardInterrupt

    monkeypatch.setattr(hsta_kernels.tensor_files, "save", half)
    assert main(arguments) == 130
    monkeypatch.undo()
    assert epochs_done(tmp_path / "run") == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", "checkpoint", "log", STATE}
    assert main([*arguments, "--resume"]) == 0
    assert_same(tmp_path / "run", trained)


def test_a_finished_run_resumes_to_itself(learning, trained):
    before = (trained / STATE).read_bytes()
    assert main(["train", *learning, "--output", str(trained), "--resume"]) == 0
    assert (trained / STATE).read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "name", "values"),
    [
        (["--seed", "1"], "seed", "0, not 1"),
        (["--epochs", "4"], "epochs", "3, not 4"),
        (["--learning-rate", "1e-3"], "learning_rate", "0.0005, not 0.001"),
        (["--special", "flow"], "special", "frames, not flow"),
    ],
)
def test_resuming_with_other_options_is_refused_by_name(learning, trained, capsys, changed, name, values):
    before = (trained / STATE).read_bytes()
    # Of an option given twice the last counts.
    assert main(["train", *learning, *changed, "--output", str(trained), "--resume"]) == 2
    assert f"has {name} {values}" in capsys.readouterr().err
    assert (trained / STATE).read_bytes() == before


def test_a_run_is_not_written_over_unasked(learning, trained, capsys):
    before = (trained / STATE).read_bytes()
    assert main(["train", *learning, "--output", str(trained)]) == 2
    assert "--resume goes on with it, --overwrite begins it again" in capsys.readouterr().err
    assert (trained / STATE).read_bytes() == before


def test_overwrite_begins_again(learning, trained, tmp_path, interrupt, monkeypatch):
    arguments = ["train", *learning, "--output", str(tmp_path / "run")]
    interrupt(STOP)
    assert main([*arguments, "--seed", "1"]) == 130
    monkeypatch.undo()
    assert main([*arguments, "--overwrite"]) == 0
    assert_same(tmp_path / "run", trained)
    assert scalars(tmp_path / "run", "loss") == scalars(trained, "loss")


def test_a_folder_of_something_else_is_left_alone(learning, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("everything")
    for flag in ([], ["--overwrite"], ["--resume"]):
        assert main(["train", *learning, "--output", str(tmp_path), *flag]) == 2
        assert "is not empty and holds no run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_state_is_told_in_one_line(learning, tmp_path, interrupt, monkeypatch, capsys):
    arguments = ["train", *learning, "--output", str(tmp_path / "run")]
    interrupt(STOP)
    assert main(arguments) == 130
    monkeypatch.undo()
    state = tmp_path / "run" / STATE
    whole = state.read_bytes()
    for damaged in (whole[:1000], whole[:-512] + bytes(512), whole[:1000] + b"?" + whole[1001:]):
        state.write_bytes(damaged)
        capsys.readouterr()
        assert main([*arguments, "--resume"]) == 2
        assert f"hsta: cannot go on from {state}: {state} is " in capsys.readouterr().err.splitlines()[-1]


def test_a_loss_that_is_no_number_stops_and_leaves_the_last_epoch(learning, tmp_path, monkeypatch, capsys):
    forward, steps = hsta_kernels.HSTA.forward, iter(range(1, 10))
    monkeypatch.setattr(
        hsta_kernels.HSTA, "forward", lambda *inputs: forward(*inputs) * (float("nan") if next(steps) == STOP else 1)
    )
    assert main(["train", *learning, "--output", str(tmp_path / "run")]) == 2
    assert "the loss is nan in epoch 2" in capsys.readouterr().err
    assert epochs_done(tmp_path / "run") == 1


def test_each_epoch_shows_all_clips_anew(learning, tmp_path, monkeypatch):
    forward, seen = hsta_kernels.HSTA.forward, []

    def spying(model, video, special):
        seen.extend(clip.numpy().tobytes() for clip in video)
        return forward(model, video, special)

    monkeypatch.setattr(hsta_kernels.HSTA, "forward", spying)
    assert main(["train", *learning, "--output", str(tmp_path / "run")]) == 0
    assert len(seen) == len(set(seen)) == 3 * 12


def test_the_log_has_loss_and_rate_of_each_epoch(trained):
    losses, rates = scalars(trained, "loss"), scalars(trained, "learning rate")
    assert [step for step, _ in losses] == [step for step, _ in rates] == [3, 6, 9]
    assert all(0 < loss < 5 for _, loss in losses)
    assert rates[0][1] > rates[1][1] > rates[2][1] > 0


def test_the_checkpoint_is_the_last_epoch_and_the_librarys(trained):
    model = hsta_kernels.HSTA.from_pretrained(trained / "checkpoint")
    assert (model.config.num_classes, model.config.image_size) == (2, 32)
    state = safetensors.torch.load_file(trained / STATE)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, state[f"weight.{name}"]), name


@pytest.mark.parametrize("text", ["", "[]", '["casme3"]', "{}", "null"])
def test_a_damaged_task_is_told_in_one_line(trained, tmp_path, text):
    shutil.copytree(trained / "checkpoint", tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "task.json").write_text(text)
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        load_checkpoint(tmp_path)


EVERYTHING = "--balance weights --label-smoothing 0.1 --mixup 0.4 --ema-decay 0.5 --augment 0.8 --special flow-dis"


def test_the_whole_recipe_stopped_and_resumed_ends_with_the_same_bits(learning, tmp_path, interrupt, monkeypatch):
    arguments = ["train", *learning, *EVERYTHING.split()]
    assert main([*arguments, "--output", str(tmp_path / "whole")]) == 0
    interrupt(STOP)
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 130
    monkeypatch.undo()
    assert main([*arguments, "--output", str(tmp_path / "run"), "--resume"]) == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_the_average_of_the_weights_is_what_is_used(learning, tmp_path, monkeypatch):
    """From the weights after each step: the first as they are, then halves of what was and what is."""
    steps, step = [], torch.optim.AdamW.step

    def spying(optimizer, *rest):
        result = step(optimizer, *rest)
        steps.append(optimizer.param_groups[0]["params"][0].detach().clone())
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", spying)
    assert main(["train", *learning, "--ema-decay", "0.5", "--output", str(tmp_path / "run")]) == 0
    state = safetensors.torch.load_file(tmp_path / "run" / STATE)
    model = hsta_kernels.HSTA.from_pretrained(tmp_path / "run" / "checkpoint")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, state[f"average.{name}"]), name
    expected = steps[0]
    for weights in steps[1:]:
        expected = 0.5 * expected + 0.5 * weights
    (name,) = (name for name in state if name.startswith("weight.") and torch.equal(state[name], steps[-1]))
    torch.testing.assert_close(state[name.replace("weight.", "average.", 1)], expected)
    assert not torch.equal(expected, steps[-1])

"""Fine-tuning: weights of other classes, frames and sizes, and never of people who are tested."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from hsta.cli import main
from hsta.generated.writer import generate_dataset
from hsta.training.checkpoints import load_checkpoint

import hsta_kernels

STATE = "training_state.safetensors"


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """People of another data set, of three classes."""
    root = tmp_path_factory.mktemp("others")
    generate_dataset(root, 2, 4, format="smic", image_size=48, progress=False)
    return root


@pytest.fixture
def first(monkeypatch):
    """The weights that a training begins with."""
    forward, seen = hsta_kernels.HSTA.forward, {}

    def spying(model, *inputs):
        if not seen:
            seen.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return forward(model, *inputs)

    monkeypatch.setattr(hsta_kernels.HSTA, "forward", spying)
    return seen


def test_the_first_weights_are_those_of_the_run(learning, trained, tmp_path, first):
    arguments = ["train", *learning, "--epochs", "2", "--start-from", str(trained), "--output", str(tmp_path / "run")]
    assert main(arguments) == 0
    weights = safetensors.torch.load_file(trained / "checkpoint" / "model.safetensors")
    assert first.keys() == weights.keys()
    assert all(torch.equal(first[name], weights[name]) for name in weights)
    _, task = load_checkpoint(tmp_path / "run")
    assert task.people == ("casme3 spno.1", "casme3 spno.2", "casme3 spno.3")


def test_other_classes_and_sizes(learning, trained, others, tmp_path, first, capsys):
    bigger = ["--dataset", "smic", "--data", str(others), "--image-size", "48"]
    arguments = ["train", *learning, *bigger, "--start-from", str(trained), "--output", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert "is of other classes: the classifier is drawn anew" in capsys.readouterr().err
    weights = safetensors.torch.load_file(trained / "checkpoint" / "model.safetensors")
    assert all(torch.equal(first[name], weights[name]) for name in weights if not name.startswith("head."))
    model, task = load_checkpoint(tmp_path / "run")
    assert (model.config.image_size, model.config.num_frames, model.config.position_size) == (48, 2, (2, 32))
    assert task.class_names == ("negative", "positive", "surprise")
    assert {person.split()[0] for person in task.people} == {"casme3", "smic"}


def test_weights_that_know_the_people_tested_are_refused(learning, trained, tmp_path, capsys):
    arguments = ["evaluate", *learning, "--start-from", str(trained), "--output", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "was trained on people who are tested: casme3 spno.1, casme3 spno.2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_of_unknown_people_are_told(learning, trained, others, tmp_path, capsys):
    known = tmp_path / "known"
    shutil.copytree(trained / "checkpoint", known)
    (known / "task.json").unlink()
    arguments = ["train", *learning, "--start-from", str(known), "--output", str(tmp_path / "run"), "--epochs", "2"]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert f"nothing tells whom {known} was trained on" in said
    assert f"nothing tells the classes of {known}" in said
    assert json.loads((tmp_path / "run" / "checkpoint" / "task.json").read_text())["people"] is None


def test_a_checkpoint_of_the_authors_code(learning, trained, tmp_path, first):
    """Of joint attention, a plain state dict."""
    joint = ["--attention", "joint"]
    model = hsta_kernels.create_model(
        "hsta_tiny_224", image_size=32, num_frames=2, depth=((1, 1),), attention="joint", num_classes=7
    )
    torch.save({"model": model.state_dict()}, tmp_path / "official.pth")
    arguments = ["train", *learning, *joint, "--epochs", "2", "--start-from", str(tmp_path / "official.pth")]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 0
    assert all(torch.equal(first[n], w) for n, w in model.state_dict().items() if not n.startswith("head."))
    assert first["head.weight"].shape[0] == 2
    assert load_checkpoint(tmp_path / "run")[0].config.position_size == (6, 224)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--depth", "1", "2"], "is of a model of depth ((1, 1),), not ((1, 2),)"),
        (["--num-frames", "4"], "is of num_frames 2, not 4: only one of these has layers that attend over time"),
        (["--attention", "joint"], "is of a model of attention divided, not joint"),
        (["--start-from", "nowhere"], "cannot start from nowhere: there is no checkpoint nowhere"),
    ],
)
def test_weights_of_another_model_are_refused(learning, trained, tmp_path, capsys, options, told):
    arguments = ["train", *learning, "--start-from", str(trained), *options, "--output", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_weights_that_changed_since_are_named(learning, trained, tmp_path, capsys):
    weights, run = tmp_path / "weights", tmp_path / "run"
    shutil.copytree(trained / "checkpoint", weights)
    arguments = ["train", *learning, "--epochs", "2", "--start-from", str(weights), "--output", str(run)]
    assert main(arguments) == 0
    model, _ = load_checkpoint(trained)
    with torch.no_grad():
        model.head.bias += 1
    model.save_pretrained(weights)
    assert main([*arguments, "--resume"]) == 2
    assert "changed: weights model.safetensors" in capsys.readouterr().err

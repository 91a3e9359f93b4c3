"""`hsta export`: what it refuses, and what it tells a stranger; that files compute the model is tested with these."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from hsta.cli import main
from hsta.training.checkpoints import load_checkpoint, save_checkpoint

import hsta_kernels


@pytest.fixture
def saved(monkeypatch):
    """What would be written."""
    calls = []
    monkeypatch.setattr(hsta_kernels.export, "save", lambda model, path, metadata: calls.append((path, metadata)))
    return calls


@pytest.mark.parametrize("action_units", (False, True))
def test_what_the_file_says_of_itself(action_units, trained, tmp_path, saved, capsys):
    model, task = load_checkpoint(trained)
    names = ("AU1", "AU4") if action_units else task.class_names
    save_checkpoint(tmp_path / "checkpoint", model, replace(task, action_units=action_units, class_names=names))
    assert main(["export", str(tmp_path), "--output", str(tmp_path / "m.onnx")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'm.onnx'}: {', '.join(names)}\n"
    ((path, metadata),) = saved
    assert path == tmp_path / "m.onnx"
    said = {name: json.loads(value) for name, value in metadata.items()}
    expected = {
        "class_names": list(names),
        "action_units": action_units,
        "activation": "sigmoid" if action_units else "softmax",
        "image_size": 32,
        "num_frames": 2,
        "special": "frames",
        "generated": True,
        "prepared": None,
        "mean": pytest.approx([0.485, 0.456, 0.406]),
        "deviation": pytest.approx([0.229, 0.224, 0.225]),
    }
    assert {name: said[name] for name in expected} == expected


@pytest.mark.parametrize("there", ("m.onnx", "m.xml", "m.bin"))
def test_files_are_replaced_on_request_only(there, trained, tmp_path, saved, capsys):
    (tmp_path / there).write_text("mine")
    output = tmp_path / ("m.onnx" if there == "m.onnx" else "m.xml")
    assert main(["export", str(trained), "--output", str(output)]) == 2
    assert capsys.readouterr().err == f"hsta: {tmp_path / there} exists: --overwrite replaces it\n"
    assert not saved
    assert main(["export", str(trained), "--output", str(output), "--overwrite"]) == 0
    assert len(saved) == 1


def test_complaints(trained, tmp_path, capsys, monkeypatch):
    def said(*arguments):
        assert main(["export", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    wrong = tmp_path / "m.pt"
    ending = f"hsta: output must end in .onnx or, for OpenVINO, in .xml, got {wrong}\n"
    assert said(trained, "--output", wrong) == ending
    assert said(tmp_path, "--output", tmp_path / "m.onnx").startswith(f"hsta: no checkpoint in {tmp_path}: ")
    (tmp_path / "folder.onnx").mkdir()
    folder = f"hsta: {tmp_path / 'folder.onnx'} is a folder; the model needs a file\n"
    assert said(trained, "--output", tmp_path / "folder.onnx", "--overwrite") == folder
    monkeypatch.setitem(sys.modules, "onnx", None)
    missing = "hsta: onnx is not installed: pip install hsta-kernels[export]\n"
    assert said(trained, "--output", tmp_path / "m.onnx") == missing

    def refuse(*_):
        raise RuntimeError("m.onnx is not written: it would compute something else")

    monkeypatch.setattr(hsta_kernels.export, "save", refuse)
    wrong = f"hsta: cannot export {trained}: m.onnx is not written: it would compute something else\n"
    assert said(trained, "--output", tmp_path / "m.onnx") == wrong
    assert [file.name for file in tmp_path.iterdir()] == ["folder.onnx"]

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch

import hsta_kernels
from hsta_kernels import export
from tests.models.parity import make_inputs, small_config, trained_reference
from tests.tolerances import assert_close_to_reference, nearby

SMALL = {"image_size": 32, "depth": ((1, 1),), "num_classes": 3}
FILES = {".onnx": {"model.onnx"}, ".xml": {"model.xml", "model.bin"}}


@pytest.fixture
def without_packages(monkeypatch):
    """The parts that need none of the extra: a file of a few bytes, which whatever a test puts here will run."""

    def write(model, path, metadata):
        path.write_text(f"new {path.suffix}")

    monkeypatch.setattr(export, "_NEEDED", {".onnx": (), ".xml": ()})
    monkeypatch.setattr(export, "_write_onnx", write)


@pytest.mark.parametrize(
    ("suffix", "fields"),
    [
        (".onnx", {"num_frames": 4, "head": "cls_last"}),
        (".xml", {"num_frames": 4, "attention": "joint", "head": "mean"}),
    ],
)
def test_a_file_computes_what_the_model_does(suffix, fields, tmp_path):
    for package in export._NEEDED[suffix]:
        pytest.importorskip(package, reason="the extra `export` is not installed")
    config = small_config(**SMALL, **fields)
    model = hsta_kernels.HSTA(config)
    model.load_state_dict(trained_reference(config).state_dict())
    path, metadata = tmp_path / f"model{suffix}", {"class_names": '["a \\"<b>", "é"]'}
    path.write_text("an older file")
    export.save(model, path, metadata)
    assert {file.name for file in tmp_path.iterdir()} == FILES[suffix]

    names, written, run = opened(path)
    assert names == ["video", "special", "logits"]
    assert written.pop("class_names") == metadata["class_names"]
    assert json.loads(written.pop("hsta_config"))["num_frames"] == 4
    assert not written
    inputs = make_inputs(config, batch=16)
    plain = hsta_kernels.reference.HSTA(config).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        same = plain(*inputs)
        exact, moved = (plain.double()(*(change(x) for x in inputs)) for change in (torch.Tensor.double, nearby))
    assert_close_to_reference(run(*inputs), same, exact, nearby64=moved)


def opened(path):
    """Names of inputs and outputs, metadata, and what runs the file, as a stranger would find them."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
        return names, session.get_modelmeta().custom_metadata_map, export._onnx_runtime(path)
    import openvino

    graph = openvino.Core().read_model(path)
    written = {name: graph.get_rt_info([export.RT_INFO, name]).value for name in ("class_names", "hsta_config")}
    return [value.any_name for value in (*graph.inputs, *graph.outputs)], written, export._openvino(path)


@pytest.fixture(scope="module")
def model():
    return trained_reference(small_config(**SMALL, num_frames=2)).eval().requires_grad_(False)


def test_the_trial_passes_the_model_and_nothing_else(model, tmp_path):
    export._try(model, model, tmp_path / "m.onnx")
    export._try(lambda *clips: model(*clips) * (1 + 2.0**-24), model, tmp_path / "m.onnx")
    for wrong in (
        lambda *clips: model(*clips) * (1 + 1e-4),
        lambda *clips: model(*clips) * float("nan"),
        copy.deepcopy(model).bfloat16().float(),
    ):
        with pytest.raises(RuntimeError, match=r"m\.onnx is not written: it would compute something else"):
            export._try(wrong, model, tmp_path / "m.onnx")


def test_a_wrong_file_is_not_left_and_a_right_one_replaces_the_older(model, tmp_path, without_packages, monkeypatch):
    path = tmp_path / "new" / "model.onnx"
    monkeypatch.setattr(export, "_onnx_runtime", lambda path: lambda *clips: 2 * model(*clips))
    with pytest.raises(RuntimeError, match="not written"):
        export.save(model, path)
    assert not list(path.parent.iterdir())
    path.write_text("an older file")
    with pytest.raises(RuntimeError, match="not written"):
        export.save(model, path)
    assert path.read_text() == "an older file"
    monkeypatch.setattr(export, "_onnx_runtime", lambda path: model)
    export.save(model, path)
    assert [file.read_text() for file in path.parent.iterdir()] == ["new .onnx"]


def test_the_model_is_left_as_it_is(model, tmp_path, without_packages, monkeypatch):
    trained = hsta_kernels.HSTA(model.config).bfloat16().train()
    exported = []
    monkeypatch.setattr(export, "_try", lambda run, plain, path: exported.append(plain))
    monkeypatch.setattr(export, "_onnx_runtime", lambda path: None)
    export.save(trained, tmp_path / "m.onnx")
    assert trained.training and all(p.requires_grad and p.dtype == torch.bfloat16 for p in trained.parameters())
    assert not exported[0].training
    for name, weight in exported[0].state_dict().items():
        assert weight.dtype == torch.float32 and torch.equal(weight, trained.state_dict()[name].float()), name


def test_what_cannot_be_exported_is_refused(model, tmp_path, without_packages, monkeypatch):
    with pytest.raises(ValueError, match=r"path must end in \.onnx or, for OpenVINO, in \.xml, got .*m\.pt"):
        export.save(model, tmp_path / "m.pt")
    with pytest.raises(TypeError, match=r"model must be an hsta_kernels\.HSTA, got Linear"):
        export.save(torch.nn.Linear(2, 2), tmp_path / "m.onnx")
    adapted = copy.deepcopy(model)
    adapted.head = torch.nn.Sequential(adapted.head)
    with pytest.raises(ValueError, match="head"):
        export.save(adapted, tmp_path / "m.onnx")
    monkeypatch.setattr(export, "_MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"bytes of weights, an ONNX file holds 1000 at most"):
        export.save(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", (".onnx", ".xml"))
def test_a_missing_package_is_named(suffix, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"onnx is not installed: pip install hsta-kernels\[export\]"):
        export.save(model, tmp_path / f"m{suffix}")
    assert not list(tmp_path.iterdir())

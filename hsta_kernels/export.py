"""The model as a file that runs without PyTorch: ONNX, or OpenVINO's IR.

Kernels cannot be exported: the file holds the reference's operations, with the model's weights. What reads it brings
kernels of its own.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hsta_kernels.models import reference
from hsta_kernels.models.config import IN_CHANNELS, SPECIAL, VIDEO

OPSET = 18  # what PyTorch's exporter writes without converting; ONNX Runtime reads it since 1.14
INPUTS, OUTPUT = ("video", "special"), "logits"
RT_INFO = "hsta"  # where the metadata lie in OpenVINO's IR

_NEEDED = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".xml": ("onnx", "onnxscript", "openvino")}
_MOST_BYTES = 2**31 - 2**24  # of weights in an ONNX file, which is one protobuf message, with room for its graph
_CLIPS = 8  # that the file is tried on, in batches of 1 and of the rest


def save(model: reference.HSTA, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Writes the model to a file for inference in float32, and tries that file before it gets its name.

    Its inputs are ``video`` (B, 3, num_frames, image_size, image_size) and ``special`` (B, 3, 2, image_size,
    image_size), its output is ``logits`` (B, num_classes), all float32, for any B. The model may be of any dtype that
    float32 holds, and is left as it is; what it drops in training is not dropped.

    The written file is run by ONNX Runtime or OpenVINO, on the CPU and in float32, on random clips in two batch sizes.
    Measured against float64, the root mean square of its errors may be twice that of plain PyTorch, rounding, and what
    float32 cannot tell apart.

    Args:
        model: ``hsta_kernels.HSTA`` or ``hsta_kernels.reference.HSTA``, on any device.
        path: where to write: ``.onnx`` for ONNX (opset 18), ``.xml`` for OpenVINO's IR, which has the weights beside it
            in a file ending in ``.bin``. Older files are replaced by complete ones.
        metadata: strings to go into the file with ``hsta_config``, the model's configuration as JSON: the model's
            metadata in ONNX, in IR the runtime information under ``hsta``.

    Raises:
        ModuleNotFoundError: a package is missing; the message says how to install it.
        TypeError: `model` is no HSTA.
        ValueError: another ending; the model is not as its configuration says (adapters, pruned, quantized layers), or
            too large for ONNX.
        RuntimeError: the file computes something else than the model. None is left.
    """
    path = Path(path)
    if path.suffix not in _NEEDED:
        raise ValueError(f"path must end in .onnx or, for OpenVINO, in .xml, got {path}")
    if not isinstance(model, reference.HSTA):
        raise TypeError(f"model must be an hsta_kernels.HSTA, got {type(model).__name__}")
    for package in _NEEDED[path.suffix]:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            message = f"{package} is not installed: pip install hsta-kernels[export]"
            raise ModuleNotFoundError(message, name=package) from error
    plain = _plain(model)
    written = {"hsta_config": json.dumps(plain.config.to_dict()), **(metadata or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        new = Path(folder) / path.name
        onnx_file = new.with_suffix(".onnx")
        _write_onnx(plain, onnx_file, written)
        if path.suffix == ".onnx":
            _try(_onnx_runtime(new), plain, path)
        else:
            _write_openvino(onnx_file, new, written)
            _try(_openvino(new), plain, path)
            # Killed between the two, this leaves no graph, rather than one beside another model's weights.
            path.unlink(missing_ok=True)
            os.replace(new.with_suffix(".bin"), path.with_suffix(".bin"))
        os.replace(new, path)


def _plain(model: reference.HSTA) -> reference.HSTA:
    """The reference with the model's weights, float32 on the CPU."""
    config, state_dict = model._what_loads_again()
    if (size := 4 * sum(tensor.numel() for tensor in state_dict.values())) > _MOST_BYTES:
        raise ValueError(f"model has {size} bytes of weights, an ONNX file holds {_MOST_BYTES} at most")
    plain = reference.HSTA(config).float()
    plain.load_state_dict(state_dict)
    return plain.eval().requires_grad_(False)


def _clips(model: reference.HSTA, batch: int) -> tuple[Tensor, Tensor]:
    """The same random clips each time; the global generator is left alone."""
    generator = torch.Generator().manual_seed(batch)
    size = model.config.image_size
    video, special = (
        torch.randn(batch, IN_CHANNELS, model.config.frames[branch], size, size, generator=generator)
        for branch in (VIDEO, SPECIAL)
    )
    return video, special


def _write_onnx(model: reference.HSTA, path: Path, metadata: Mapping[str, str]) -> None:
    import onnx

    batch = torch.export.Dim("batch")
    shapes = {name: {0: batch} for name in INPUTS}
    with _quietly():
        # A batch of one would be taken for the only one.
        program = torch.export.export(model, _clips(model, 2), dynamic_shapes=shapes)
        torch.onnx.export(
            program,
            f=path,
            output_names=[OUTPUT],
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    written = onnx.load(path)
    onnx.helper.set_model_props(written, dict(metadata))
    onnx.save(written, path)


def _write_openvino(onnx_file: Path, path: Path, metadata: Mapping[str, str]) -> None:
    import openvino

    written = openvino.convert_model(onnx_file)
    for name, value in metadata.items():
        written.set_rt_info(value, [RT_INFO, name])
    openvino.save_model(written, path, compress_to_fp16=False)


def _onnx_runtime(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        arrays = (tensor.numpy() for tensor in inputs)
        return torch.from_numpy(session.run([OUTPUT], dict(zip(INPUTS, arrays, strict=True)))[0])

    return run


def _openvino(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    import openvino

    # By itself it multiplies bfloat16 where the processor does.
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(*inputs: Tensor) -> Tensor:
        arrays = (tensor.numpy() for tensor in inputs)
        return torch.tensor(compiled(dict(zip(INPUTS, arrays, strict=True)))[OUTPUT])

    return run


def _try(run: Callable[[Tensor, Tensor], Tensor], model: reference.HSTA, path: Path) -> None:
    """Raises `RuntimeError` when the file does not compute what the model does, by the tests' error rule."""
    batches = [_clips(model, batch) for batch in (1, _CLIPS - 1)]
    ours, same = (torch.cat([function(*clips) for clips in batches]).double() for function in (run, model))
    exact_model = copy.deepcopy(model).double()
    exact, nearby = (
        torch.cat([exact_model(*(change(tensor.double()) for tensor in clips)) for clips in batches])
        for change in (lambda tensor: tensor, _nearby)
    )
    error = _rms(ours - exact)
    rounding = _rms(exact.float() - exact) + 2.0**-24 * _rms(exact)
    allowed = 2 * (_rms(same - exact) + rounding + _rms(nearby - exact))
    if not error <= allowed:  # NaN is not
        raise RuntimeError(
            f"{path} is not written: it would compute something else than the model, with a root mean square error of "
            f"{error:.2e} where {allowed:.2e} is allowed"
        )


def _nearby(tensor: Tensor) -> Tensor:
    """Inputs that float32 cannot tell from the given ones."""
    generator = torch.Generator().manual_seed(tensor.numel())
    signs = torch.randint(2, tensor.shape, generator=generator, dtype=tensor.dtype)
    return tensor * (1 + 2.0**-24 * (2 * signs - 1))


def _rms(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what PyTorch's exporter tells its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

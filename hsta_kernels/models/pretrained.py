"""Saving and loading models: ``config.json`` and ``model.safetensors``, as the Hugging Face Hub has them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from hsta_kernels import tensor_files

from .config import HSTAConfig
from .official import config_of, read_state_dict

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

Model = TypeVar("Model", bound="Checkpoints")


class Checkpoints(nn.Module):
    """What a model with an ``HSTAConfig`` as ``config`` can be saved to and loaded from."""

    config: HSTAConfig

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes ``config.json`` and ``model.safetensors``; an older file is replaced by a complete one."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with _replacing(directory / WEIGHTS_FILE) as weights:
            tensor_files.save(weights, self.state_dict(), {})
        with _replacing(directory / CONFIG_FILE) as config:
            config.write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls: type[Model], name: str | os.PathLike[str]) -> Model:
        """The model that ``save_pretrained`` wrote, in float32 and evaluation mode.

        Args:
            name: a directory, or the name of a repository on the Hugging Face Hub, ``owner/name`` (this
                needs the extra ``hub``).

        Raises:
            FileNotFoundError: there is no such directory or repository, or files are missing in it.
            ValueError: the files are damaged, or do not belong together.
        """
        directory = Path(name) if os.path.isdir(name) else _download(os.fspath(name))
        missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if not (directory / file).is_file()]
        if missing:
            raise FileNotFoundError(f"{directory} holds no {' and no '.join(missing)}")
        try:
            values = json.loads((directory / CONFIG_FILE).read_text())
        except ValueError as error:
            raise ValueError(f"{directory / CONFIG_FILE} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{directory / CONFIG_FILE} must hold the fields of HSTAConfig, got {values!r}")
        state_dict, _ = tensor_files.load(directory / WEIGHTS_FILE)
        return cls(HSTAConfig.from_dict(values))._with_weights(state_dict, str(directory / WEIGHTS_FILE))

    @classmethod
    def from_official(
        cls: type[Model], checkpoint: str | os.PathLike[str] | Mapping[str, Tensor], **overrides: Any
    ) -> Model:
        """The model in a checkpoint of the authors' code (`OceanSummerDay/HSTA_MER`), in evaluation mode.

        Patch sizes, widths, depth, classes and attention variant are read from the shapes, heads from the
        published model of those widths.

        Args:
            checkpoint: a state dict, or a ``.pth`` or ``.safetensors`` file of one; wrapped in ``model``,
                ``module`` or ``state_dict`` or not. Files are loaded without running code from them.
            overrides: fields of ``HSTAConfig`` that shapes do not tell (``image_size``, ``num_frames``,
                ``head``, drop rates; ``num_heads`` for widths that were not published).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a checkpoint of an HSTA model, or it contradicts ``overrides``.
        """
        state_dict, source = read_state_dict(checkpoint)
        return cls(config_of(state_dict, source, overrides))._with_weights(state_dict, source)

    def _with_weights(self: Model, state_dict: Mapping[str, Tensor], source: str) -> Model:
        expected = self.state_dict()
        for complaint, names in (
            ("lacks", [name for name in expected if name not in state_dict]),
            ("has unknown", [name for name in state_dict if name not in expected]),
        ):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise ValueError(f"{source} does not fit the model: it {complaint} {', '.join(names[:3])}{more}")
        for name, tensor in expected.items():
            if state_dict[name].shape != tensor.shape:
                shapes = f"{tuple(state_dict[name].shape)}, expected {tuple(tensor.shape)}"
                raise ValueError(f"{source} does not fit the model: {name} has shape {shapes}")
        self.load_state_dict(state_dict)
        return self.eval()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which in the end replaces ``path`` in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _download(name: str) -> Path:
    if name.count("/") != 1 or not all(name.split("/")):
        raise FileNotFoundError(f"there is no directory {name}")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        reason = "repositories of the Hugging Face Hub need `pip install hsta-kernels[hub]`"
        raise FileNotFoundError(f"there is no directory {name}, and {reason}") from None
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(f"there is no directory {name}, and the Hub answers: {error}") from error

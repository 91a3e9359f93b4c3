"""Saving and loading models: ``config.json`` and ``model.safetensors``, as the Hugging Face Hub has them."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hsta_kernels import tensor_files
from hsta_kernels.replacing import replacing

from .config import HSTAConfig
from .official import config_of, listing, read_state_dict

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_CONFIG = "hsta_config"  # in the metadata of the weights
_HEAD = ("head.weight", "head.bias")
_EXACT_IN_FLOAT32 = (torch.float32, torch.bfloat16, torch.float16)

Model = TypeVar("Model", bound="Checkpoints")


class Checkpoints(nn.Module):
    """What a model with an ``HSTAConfig`` as ``config`` can be saved to and loaded from."""

    config: HSTAConfig

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes ``config.json`` and ``model.safetensors``, from which ``from_pretrained`` makes the same model.

        Older files are replaced by complete ones. ``num_classes`` is written as the classifier has it, which may have
        been exchanged for another ``nn.Linear``.

        Raises:
            ValueError: no configuration describes the model as it is (adapters, pruned, parametrized, quantized
                or tied layers, a classifier that is no ``nn.Linear``), or float32 cannot hold its weights. Nothing is
                written.
        """
        config, state_dict = self._what_loads_again()
        fields = config.to_dict()
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # The weights are renamed first: they know their configuration, so loading tells if the other is still the old.
        with replacing(directory / CONFIG_FILE) as described, replacing(directory / WEIGHTS_FILE) as weights:
            described.write_text(json.dumps(fields, indent=2) + "\n")
            tensor_files.save(weights, state_dict, {_CONFIG: json.dumps(fields)})

    @classmethod
    def from_pretrained(cls: type[Model], name: str | os.PathLike[str], *, num_classes: int | None = None) -> Model:
        """The model that ``save_pretrained`` wrote, in float32 and evaluation mode.

        Args:
            name: a directory, or the name of a repository on the Hugging Face Hub, ``owner/name`` (this
                needs the extra ``hub``).
            num_classes: number of logits, if another than that of the saved model: the classifier is then drawn
                anew, with a ``UserWarning``.

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
        config = HSTAConfig.from_dict(values)
        state_dict, metadata = tensor_files.load(directory / WEIGHTS_FILE)
        model = cls._with_weights(config, state_dict, str(directory / WEIGHTS_FILE), num_classes)
        saved = HSTAConfig.from_dict(json.loads(metadata[_CONFIG])) if _CONFIG in metadata else config
        if saved != config:
            pairs = zip(config.to_dict().items(), saved.to_dict().values(), strict=True)
            different = listing(f"{name} {value}, not {right}" for (name, value), right in pairs if value != right)
            raise ValueError(
                f"{directory / CONFIG_FILE} is not the configuration that {WEIGHTS_FILE} was saved with: it has "
                f"{different}. Saving was interrupted, or it was changed. The metadata of the weights hold theirs"
            )
        return model

    @classmethod
    def from_official(
        cls: type[Model],
        checkpoint: str | os.PathLike[str] | Mapping[str, Tensor],
        *,
        num_classes: int | None = None,
        **overrides: Any,
    ) -> Model:
        """The model in a checkpoint of the authors' code (`OceanSummerDay/HSTA_MER`), in evaluation mode.

        Patch sizes, widths, depth, classes and attention variant are read from the shapes, heads from the
        published model of those widths.

        Args:
            checkpoint: a state dict, or a ``.pth`` or ``.safetensors`` file of one. It may be wrapped as training
                scripts, ``DistributedDataParallel``, ``torch.compile`` and averages of weights (EMA) do, in
                dictionaries or in names; the logger ``hsta_kernels`` says what was unwrapped, and warns where
                averages lie beside the weights, which are loaded. Files are loaded without running code from them.
            num_classes: number of logits, if another than that of the checkpoint: the classifier is then drawn
                anew, with a ``UserWarning``.
            overrides: fields of ``HSTAConfig`` that shapes do not tell (``image_size``, ``num_frames``,
                ``head``, drop rates; ``num_heads`` for widths that were not published).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a checkpoint of an HSTA model, or it contradicts ``overrides``.
        """
        state_dict, source = read_state_dict(checkpoint)
        return cls._with_weights(config_of(state_dict, source, overrides), state_dict, source, num_classes)

    @classmethod
    def _with_weights(
        cls: type[Model], config: HSTAConfig, state_dict: Mapping[str, Tensor], source: str, num_classes: int | None
    ) -> Model:
        model = cls(config if num_classes is None else replace(config, num_classes=num_classes))
        fresh = model.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in fresh.items()}
        shapes |= {name: (config.num_classes, *shapes[name][1:]) for name in _HEAD}
        if misfit := _misfit(state_dict, shapes):
            raise ValueError(f"{source} does not fit the model: {misfit}")
        if model.config != config:
            text = f"{source} has {config.num_classes} classes, the model {num_classes}: its classifier is drawn anew"
            warnings.warn(f"{text}, and must be trained", UserWarning, stacklevel=3)
            state_dict = {**state_dict, **{name: fresh[name] for name in _HEAD}}
        model.load_state_dict(state_dict)
        return model.eval()

    def _what_loads_again(self) -> tuple[HSTAConfig, dict[str, Tensor]]:
        """Configuration and state dict that make a model equal to this one."""
        config, state_dict = self.config, self.state_dict()
        classifier = state_dict.get(_HEAD[0])
        if isinstance(classifier, Tensor) and classifier.ndim == 2:
            config = replace(config, num_classes=classifier.shape[0])
        with torch.device("meta"):
            twin = type(self)(config)
        types = {name: type(module) for name, module in twin.named_modules()}
        misfit = (
            _misfit(state_dict, {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()})
            or listing(
                f"{name} is a {type(module).__name__}, expected a {expected.__name__}"
                for name, module in self.named_modules()
                if type(module) is not (expected := types.get(name, type(None)))
            )
            or listing(
                f"{name} is {tensor.dtype}, which float32 does not hold"
                for name, tensor in state_dict.items()
                if tensor.dtype not in _EXACT_IN_FLOAT32
            )
            or listing(f"{name} is tied to another parameter" for name in _tied(state_dict))
        )
        if misfit:
            raise ValueError(f"what is saved of this model would not load as it is: {misfit}")
        return config, state_dict


def _tied(state_dict: Mapping[str, Tensor]) -> list[str]:
    uses = Counter(tensor.data_ptr() for tensor in state_dict.values())
    return [name for name, tensor in state_dict.items() if uses[tensor.data_ptr()] > 1]


def _misfit(state_dict: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What keeps a state dict from being that of a model with these names and shapes; empty if nothing does."""
    if lacking := listing(name for name in shapes if name not in state_dict):
        return f"it lacks {lacking}"
    if unknown := listing(name for name in state_dict if name not in shapes):
        return f"it has unknown {unknown}"
    flaws = ((name, _flaw(state_dict[name], shape)) for name, shape in shapes.items())
    return listing(f"{name} {flaw}" for name, flaw in flaws if flaw)


def _flaw(value: Any, shape: tuple[int, ...]) -> str:
    if type(value) not in (Tensor, nn.Parameter):  # such as a part of a tensor on several devices
        return f"is a {type(value).__name__}, expected a Tensor"
    if value.is_meta:
        return "is on the meta device, which holds no values"
    if value.layout != torch.strided or not value.is_floating_point():
        return f"is {value.layout} {value.dtype}, expected dense floating-point numbers"
    if tuple(value.shape) != shape:
        return f"has shape {tuple(value.shape)}, expected {shape}"
    return ""


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

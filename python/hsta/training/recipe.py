"""The training recipe of HSTA's authors, and what follows from it: learning rates and decay."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UserError

if TYPE_CHECKING:
    from hsta_kernels import HSTA

BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Recipe:
    """The defaults are what HSTA's authors train CAS(ME)^3 with (arXiv 2405.03202)."""

    epochs: int = 150
    """Number of passes through the training clips; the weights of the last one are used, none is picked."""
    batch_size: int = 32
    """Number of clips in a training step, on each device."""
    learning_rate: float = 5e-4
    """Highest learning rate, for a batch of 256 clips; it is scaled in proportion to the batch."""
    warmup_epochs: int = 5
    """Number of epochs in which the learning rate rises from 0; it then falls along a cosine to 0."""
    weight_decay: float = 0.05
    """Weight decay of AdamW; biases, norms and CLS tokens are spared."""
    layer_decay: float = 0.9
    """Factor on the learning rate from one HSTA block to the one before it."""
    drop_rate: float = 0.2
    """Probability that dropout within the layers sets a value to 0."""
    drop_path_rate: float = 0.2
    """Probability that a training step skips the last layer; that of the layers before it rises to this from 0."""
    head_drop_rate: float = 0.2
    """Probability that dropout before the classifier sets a value to 0."""
    balance: Literal["auto", "sampling", "weights", "none"] = "auto"
    """How rare classes get their due: sampling shows as many clips of each, weights gives a clip of a rare class a
    greater loss, none leaves classes as they are; auto is sampling, and with action units, which cannot be sampled one
    by one, none."""
    label_smoothing: float = 0.0
    """Share of a clip's target that is spread over all classes; of each action unit, over there and not there."""
    mixup: float = 0.0
    """Clips are mixed by shares from Beta(mixup, mixup), such as 0.2; with 0 they are not."""
    ema_decay: float = 0.0
    """What an average of the weights keeps of itself in a training step, such as 0.99; it is then what is used in the
    end. With 0 the last weights are used."""
    augment: float = 0.0
    """Strength, to 1, of two changes more that are drawn for a clip, of turn, place, size, brightness, contrast and
    saturation, on the device and alike for all its frames (RandAugment); with 0 there are none."""

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "positive"),
            ("warmup_epochs", 0 <= self.warmup_epochs < self.epochs, f"from 0 to below epochs {self.epochs}"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0 and at most 1"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)"),
            ("mixup", 0 <= self.mixup < math.inf, "0 or more"),
            ("ema_decay", 0 <= self.ema_decay < 1, "in [0, 1)"),
            ("augment", 0 <= self.augment <= 1, "in [0, 1]"),
        ):
            if not good:
                raise UserError(f"{name} must be {expected}, got {getattr(self, name)}")

    @property
    def drop_rates(self) -> dict[str, Any]:
        """What the model's configuration takes of the recipe."""
        return {name: getattr(self, name) for name in ("drop_rate", "drop_path_rate", "head_drop_rate")}

    def balance_of(self, action_units: bool) -> Literal["sampling", "weights", "none"]:
        """What ``balance`` means for classes or for action units. Raises `UserError` for what does not go together."""
        if self.balance == "auto":
            return "none" if action_units else "sampling"
        if self.balance == "sampling" and action_units:
            raise UserError("balance must be weights or none with action units, got sampling: a clip shows several")
        return self.balance

    def learning_rate_at(self, progress: float, batch_size: int) -> float:
        """The rate when ``progress`` of the ``epochs`` are done, for a step of ``batch_size`` clips in all."""
        peak = self.learning_rate * batch_size / 256
        if progress < self.warmup_epochs:
            return peak * progress / self.warmup_epochs
        share = (progress - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return peak * 0.5 * (1 + math.cos(math.pi * share))


def parameter_groups(model: HSTA, recipe: Recipe) -> list[dict]:
    """Groups for AdamW; each has ``scale``, the factor that layer decay puts on its learning rate.

    The embeddings lie one step below the first HSTA block, head and last norms one above the last.
    """
    depth = len(model.blocks)
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if block := re.match(r"blocks\.(\d+)\.", name):
            level = int(block[1]) + 1
        else:
            level = 0 if name.startswith(("patch_embed", "cls_token")) else depth + 1
        spared = parameter.ndim == 1 or name.startswith("cls_token")
        group = groups.setdefault(
            (level, spared),
            {
                "params": [],
                "scale": recipe.layer_decay ** (depth + 1 - level),
                "weight_decay": 0.0 if spared else recipe.weight_decay,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())

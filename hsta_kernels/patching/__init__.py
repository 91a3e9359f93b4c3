"""Other people's video transformers on these kernels: `patch` a model, `unpatch` it."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from types import ModuleType

from torch import nn

# A library, and the files here about it, which import it: each has patch(model), which gives the names of modules that
# it knows, with None or why one was left as it is, and unpatch(model).
FAMILIES = {
    "transformers": ("timesformer", "attention_interface", "vjepa2", "encoder_layers"),
    "diffusers": ("attention_processor",),
    "timm": ("timm_attention",),
}


@dataclass
class PatchReport:
    """What `patch` did to a model.

    Attributes:
        replaced: names of the modules that run on these kernels now.
        left: names of modules that attend and were left as they are, with the reason.
    """

    replaced: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} modules on hsta_kernels"]
        lines += [f"  {name}" for name in self.replaced]
        if self.left:
            lines += [f"{len(self.left)} left as they are"]
            lines += [f"  {name}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def patch(model: nn.Module) -> PatchReport:
    """Makes a video transformer, or a ViT, of another library run on these kernels, with the same results.

    Modules are changed in place, and stay what they were to everybody who looks: weights, names, hooks, gradient
    checkpointing and ``state_dict`` are untouched, only ``forward`` is another. Known are

    - TimeSformer of Hugging Face transformers: its layers, with divided or joint attention,
    - ViViT, VideoMAE and V-JEPA 2 of transformers: their attention, as ``attn_implementation="hsta"``, V-JEPA 2's with
      its rotary embedding, and what follows attention in a layer,
    - AnimateDiff, Stable Video Diffusion and Latte of diffusers: attention over time, by an attention processor,
    - ViTs of timm: ``timm.layers.Attention``.

    What a call asks that the kernels cannot do (attention weights as an output, dropout of probabilities, a hook on a
    module inside a layer) goes the way it went before.

    Args:
        model: the model, or a module that contains it. Patching it again changes nothing.

    Returns:
        What was replaced, and what was not and why; ``print`` shows it.

    Raises:
        TypeError: `model` is no module.
        ValueError: nothing in the model is known here.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
    found: dict[str, str | None] = {}
    for family in _families():
        found |= family.patch(model)
    report = PatchReport()
    for name, reason in found.items():
        if reason is None:
            report.replaced.append(name)
        else:
            report.left[name] = reason
    if not (report.replaced or report.left):
        raise ValueError(
            f"model ({type(model).__name__}) has no module that is known here: TimeSformer, ViViT, VideoMAE and "
            "V-JEPA 2 of transformers are, attention over time of diffusers, and timm.layers.Attention"
        )
    return report


def unpatch(model: nn.Module) -> None:
    """Takes back what `patch` did. A model that is not patched is left as it is.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
    for family in _families():
        family.unpatch(model)


def _families() -> list[ModuleType]:
    """Those that a model may be of: of libraries that somebody has imported."""
    return [
        importlib.import_module(f"hsta_kernels.patching.{name}")
        for library, names in FAMILIES.items()
        if library in sys.modules
        for name in names
    ]

"""Other people's video transformers on these kernels: `patch` a model, `unpatch` it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field

from torch import nn

# A module's class -> ours that takes its place, in a file that imports what the class is made of.
REPLACEMENTS = {
    "transformers.models.timesformer.modeling_timesformer.TimesformerLayer": (
        "hsta_kernels.patching.timesformer",
        "TimesformerLayer",
    ),
}
# Models whose attention is a function that is looked up by name: `attn_implementation` of transformers.
BY_ATTENTION_INTERFACE = (
    "transformers.models.videomae.modeling_videomae",
    "transformers.models.vivit.modeling_vivit",
    "transformers.models.vjepa2.modeling_vjepa2",
)


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
    """Makes a video transformer of another library run on these kernels, with the same results.

    Modules are changed in place, and stay what they were to everybody who looks: weights, names, hooks, gradient
    checkpointing and ``state_dict`` are untouched, only ``forward`` is another. Known are

    - TimeSformer of Hugging Face transformers: its layers, with divided or joint attention,
    - ViViT, VideoMAE and V-JEPA 2 of transformers: their attention, as ``attn_implementation="hsta"``.

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
    report = PatchReport()
    before: dict[int, str] = {}
    for name, module in model.named_modules():
        kind = type(module)
        if target := REPLACEMENTS.get(f"{kind.__module__}.{kind.__qualname__}"):
            replacement = getattr(importlib.import_module(target[0]), target[1])
            if reason := replacement.refuse(module):
                report.left[name] = reason
            else:
                module.__class__ = replacement
                report.replaced.append(name)
        elif hasattr(kind, "hsta_original"):
            report.replaced.append(name)
        elif kind.__module__ in BY_ATTENTION_INTERFACE:
            from hsta_kernels.patching import attention_interface

            attention_interface.choose(module, before)
            if attention_interface.attends(module):
                report.replaced.append(name)
            elif isinstance(module, attention_interface.PreTrainedModel):
                attention_interface.give_way(module)
    if not (report.replaced or report.left):
        raise ValueError(
            f"model ({type(model).__name__}) has no module that is known here: TimeSformer, ViViT, VideoMAE and "
            "V-JEPA 2 of transformers are"
        )
    return report


def unpatch(model: nn.Module) -> None:
    """Takes back what `patch` did. A model that is not patched is left as it is.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
    for module in model.modules():
        if original := getattr(type(module), "hsta_original", None):
            module.__class__ = original
        elif type(module).__module__ in BY_ATTENTION_INTERFACE:
            from hsta_kernels.patching import attention_interface

            attention_interface.restore(module)

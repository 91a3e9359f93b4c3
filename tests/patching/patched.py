"""What the tests of patched models share: weights as after training, and a model's results and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.models.parity import Results, assert_results_agree, stack

MISSING = "transformers is not installed; `make test` installs it"


def trained(model: nn.Module) -> nn.Module:
    """No parameter at a special value such as 0 or 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def results(model: nn.Module, clip: dict[str, Tensor]) -> Results:
    """Logits, and the gradients of all parameters and of the clip."""
    model.zero_grad()
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in clip.items()}
    logits = model(**leaves).logits
    logits.square().sum().backward()
    of_weights = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        # A key's bias adds the same to all scores of a query: its gradient is rounding noise around zero.
        if parameter.grad is not None and not name.endswith(("key.bias", "k_proj.bias"))
    }
    return {"logits": logits.detach(), **{name: leaf.grad for name, leaf in leaves.items()}, **of_weights}


def assert_same_results(
    patched: nn.Module, original: nn.Module, clip: Callable[[int], dict[str, Tensor]], dtype: torch.dtype
) -> None:
    """As tests/models/parity.py has it, over clips ``clip(0), clip(1), ...``."""
    ours, theirs = (copy.deepcopy(model).to(dtype) for model in (patched, original))
    exact = copy.deepcopy(theirs).double()
    draws: list[list[Results]] = [[], [], []]
    for seed in range(8):
        video = {name: tensor.to(dtype) for name, tensor in clip(seed).items()}
        wide = {name: tensor.double() for name, tensor in video.items()}
        for of_model, model, inputs in zip(draws, (ours, theirs, exact), (video, video, wide), strict=True):
            of_model.append(results(model, inputs))
    assert_results_agree(*map(stack, draws))

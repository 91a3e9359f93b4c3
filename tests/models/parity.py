"""Small models in pairs, fused and reference, and what they compute."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from hsta_kernels import HSTA, HSTAConfig, reference

Results = dict[str, Tensor]


def small_config(**fields) -> HSTAConfig:
    """Two blocks of unequal depth; the image is a multiple of neither patch size."""
    defaults = {
        "image_size": 50,
        "embed_dim": (24, 48),
        "num_heads": (3, 3),
        "mlp_ratio": (2.0, 3.0),
        "depth": ((1, 2), (2, 1)),
        "num_classes": 5,
    }
    return HSTAConfig(**{**defaults, **fields})


def trained_reference(config: HSTAConfig) -> reference.HSTA:
    """A reference model none of whose parameters is at a special value such as 0 or 1, as after training."""
    model = reference.HSTA(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def same_model(kind: Callable[..., reference.HSTA], model: reference.HSTA) -> reference.HSTA:
    copy = kind(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.to(next(model.parameters()).dtype).train(model.training)


def make_inputs(config: HSTAConfig, batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    size = config.image_size
    video = torch.randn(batch, 3, config.num_frames, size, size, dtype=dtype)
    return video, torch.randn(batch, 3, 2, size, size, dtype=dtype)


def run(
    forward: Callable[[Tensor, Tensor], Tensor],
    model: reference.HSTA,
    video: Tensor,
    special: Tensor,
    seed: int,
    autocast: torch.dtype | None = None,
) -> Results:
    """Logits, and the gradients of a weighted sum of them in every parameter and in both inputs."""
    video, special = (x.detach().clone().requires_grad_() for x in (video, special))
    model.zero_grad()
    with torch.random.fork_rng(), torch.autocast("cpu", dtype=autocast) if autocast else nullcontext():
        torch.manual_seed(seed)  # of dropout, where there is some
        logits = forward(video, special)
    weights = torch.linspace(-1, 2, logits.numel()).view_as(logits).to(logits.dtype)
    logits.backward(weights)
    results = {"logits": logits.detach(), "video": video.grad, "special": special.grad}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        results[name] = parameter.grad
    return results


def assert_parity(
    model: reference.HSTA,
    fused: Callable[[HSTA], Callable] = lambda model: model,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    draws: int = 8,
) -> None:
    """The fused twin of a reference model (``fused`` compiles it, say) agrees with it by the error rule.

    A model amplifies rounding errors, by how much depends on the input, and the gradients of one draw share the luck:
    of a hundred some exceed the rule, with plain PyTorch on both sides as well. So the root mean square of each
    result's error is taken over several draws. The largest error is judged by how far it stands out of the errors
    around it, in units of their root mean square: not twice as far as plain PyTorch's stand out anywhere.
    """
    model = model.to(dtype)
    twin = same_model(HSTA, model)
    exact_model = same_model(reference.HSTA, model).double()
    forward = fused(twin)
    ours, theirs, exact = [], [], []
    for seed in range(draws):
        inputs = make_inputs(model.config, dtype=dtype)
        ours.append(run(forward, twin, *inputs, seed, autocast))
        theirs.append(run(model, model, *inputs, seed, autocast))
        exact.append(run(exact_model, exact_model, *(x.double() for x in inputs), seed))
    assert_results_agree(*map(stack, (ours, theirs, exact)))


def stack(draws: list[Results]) -> Results:
    return {name: torch.stack([results[name] for results in draws]) for name in draws[0]}


def assert_results_agree(ours: Results, theirs: Results, exact: Results) -> None:
    """Results are stacked, one row a draw."""
    assert ours.keys() == theirs.keys() == exact.keys()
    assert _rms(theirs["logits"] - exact["logits"]) < 0.1 * _rms(exact["logits"]), "not the same function"
    peaks = {"ours": 0.0, "theirs": 0.0}
    for name, ref in exact.items():
        assert ours[name].dtype == theirs[name].dtype, f"{name}: {ours[name].dtype}, not {theirs[name].dtype}"
        rounding = ref.to(ours[name].dtype) - ref
        errors = {"ours": ours[name] - ref, "theirs": theirs[name] - ref}
        error, allowed = _rms(errors["ours"]), 2 * _rms(errors["theirs"]) + 2 * _rms(rounding)
        assert error <= allowed, f"{name}: rms error {error:.3e} exceeds {allowed:.3e}"
        for who, rows in errors.items():
            for row in rows:
                peaks[who] = max(peaks[who], float(row.abs().max() / (_rms(row) + _rms(rounding) + 1e-300)))
    assert peaks["ours"] <= 2 * peaks["theirs"], f"an error stands out: {peaks}"


def _rms(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt()

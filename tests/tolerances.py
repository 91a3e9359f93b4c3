"""When two results agree: the error rule that every parity test uses.

Measured against float64, our error may be twice the error of plain PyTorch in the same dtype, plus twice what rounding
the exact result to that dtype costs; both as the largest error of any element and as root mean square.
"""

from __future__ import annotations

import torch


def assert_close_to_reference(
    ours: torch.Tensor, torch_same_dtype: torch.Tensor, ref64: torch.Tensor, name: str = "result"
) -> None:
    """Asserts the error rule for `ours`, given plain PyTorch's result in the same dtype and the float64 result."""
    assert ours.dtype == torch_same_dtype.dtype, f"{name}: {ours.dtype} instead of {torch_same_dtype.dtype}"
    assert ours.shape == ref64.shape, f"{name}: shape {tuple(ours.shape)} instead of {tuple(ref64.shape)}"
    if not ref64.numel():
        return
    assert torch.isfinite(ours).all(), f"{name}: not finite everywhere"
    ref = ref64.double()
    error, theirs, rounding = (t.double() - ref for t in (ours, torch_same_dtype, ref64.to(ours.dtype)))
    for measure, of in (("max", lambda t: t.abs().max()), ("rms", lambda t: t.square().mean().sqrt())):
        allowed = 2 * of(theirs) + 2 * of(rounding)
        assert of(error) <= allowed, f"{name}: {measure} error {of(error):.3e} exceeds {allowed:.3e}"

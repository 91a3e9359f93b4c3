"""When two results agree: the error rule that every parity test uses.

Measured against float64, our error may be twice the sum of

1. the error of plain PyTorch in the same dtype,
2. what rounding the exact result to that dtype costs,
3. float32's unit roundoff, 2**-24, of the result's scale,
4. how far the exact result moves when float32 rounds the inputs (``nearby``), where the test knows,
5. float32's smallest normal number, 2**-126,

both as the largest error of any element and as root mean square; the scale is the exact result's, by the same measure.

The first is one draw of a random variable, and another one on another processor, since PyTorch has its own kernels for
each. Where it happens to be small, or the result happens to be a number of the dtype, the other three say what
arithmetic in float32 cannot avoid, whoever does it:

- An element is the end of a calculation whose steps are rounded to 24 bits. Terms as large as the result leave an error
  of 2**-24 of it, also in an element where they cancel or that is a tail, 1e-30 beside 1: it is not known any better
  than the numbers it comes from.
- Steps before that may be larger than the result: a sum of terms that cancel, a score. A calculation in float32 gives,
  at best, the exact result of inputs that differ from the given ones by half a unit in the last place. A score of size
  s moves by about s * 2**-24, and its probability by the exponential of that, but not where the row is one-hot; so the
  result is calculated, not bounded: in float64, from such inputs.
- Below the smallest normal number float32 loses its relative precision, and a kernel may flush to zero.

Twice, since storing a result in the dtype may double an error: it moves an element that is a number of the dtype only
when the error passes half the way to the next one.

None of this loosens the rule for float16 and bfloat16 at the scale of a result: their roundoff is 2**13 and 2**16 times
as large. For float32 the third term is at most what an unlucky second one is.

Twice the rounding would also allow a cast that cuts digits off. Its errors all point to zero, while those of rounding
point anywhere: so a large result in float16 or bfloat16 may not drift, which is the component of the error along the
result, by more than PyTorch's does plus half the first two terms. Cutting costs 1.7 times the second, rounding next to
nothing.
"""

from __future__ import annotations

import torch

ROUNDOFF = 2.0**-24
SMALLEST = torch.finfo(torch.float32).tiny
ENOUGH_FOR_DRIFT = 256  # elements; the rounding of as many drifts by a sixteenth of its root mean square


def nearby(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float64, every element larger or smaller by 2**-24 of itself: no better known to float32 than this.

    The signs are random and the same at each call; the global generator is left alone.
    """
    generator = torch.Generator().manual_seed(tensor.numel())
    signs = torch.randint(2, tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
    return tensor.double() * (1 + ROUNDOFF * (2 * signs - 1).to(tensor.device))


def largest(error: torch.Tensor) -> float:
    return float(error.abs().max())


def rms(error: torch.Tensor) -> float:
    return float(error.square().mean().sqrt())


def drift(error: torch.Tensor, ref: torch.Tensor) -> float:
    """Root mean square of the error's component along `ref`."""
    return abs(float((error * ref).sum())) / (float(ref.square().sum()) * ref.numel() + SMALLEST) ** 0.5


def assert_close_to_reference(
    ours: torch.Tensor,
    torch_same_dtype: torch.Tensor,
    ref64: torch.Tensor,
    name: str = "result",
    nearby64: torch.Tensor | None = None,
) -> None:
    """Asserts the error rule for `ours`, given plain PyTorch's result in the same dtype and the float64 result.

    `nearby64` is the float64 result for ``nearby`` inputs.
    """
    assert ours.dtype == torch_same_dtype.dtype, f"{name}: {ours.dtype} instead of {torch_same_dtype.dtype}"
    assert ours.shape == ref64.shape, f"{name}: shape {tuple(ours.shape)} instead of {tuple(ref64.shape)}"
    if not ref64.numel():
        return
    assert torch.isfinite(ours).all(), f"{name}: not finite everywhere"
    ref = ref64.double()
    error, theirs, rounding = (t.double() - ref for t in (ours, torch_same_dtype, ref64.to(ours.dtype)))
    moved = torch.zeros_like(ref) if nearby64 is None else nearby64 - ref
    for of in (largest, rms):
        allowed = 2 * (of(theirs) + of(rounding) + ROUNDOFF * of(ref) + of(moved) + SMALLEST)
        assert of(error) <= allowed, f"{name}: {of.__name__} error {of(error):.3e} exceeds {allowed:.3e}"
    if ours.dtype != torch.float32 and ref.numel() >= ENOUGH_FOR_DRIFT:
        allowed = drift(theirs, ref) + (rms(theirs) + rms(rounding)) / 2
        assert drift(error, ref) <= allowed, f"{name}: drift {drift(error, ref):.3e} exceeds {allowed:.3e}"

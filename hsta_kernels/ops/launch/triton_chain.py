# mypy: allow-incomplete-defs, no-check-untyped-defs
"""A kernel's part in programmatic dependent launch; the launch's part is `new_chain` in triton.py."""

from __future__ import annotations

import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # an older Triton, or one without NVIDIA's backend: no kernel is compiled as CHAINED
    gdc_launch_dependents = gdc_wait = None


@triton.jit
def enter_chain(CHAINED: tl.constexpr):
    """The first statement of a kernel in a chain: waits until the kernel before is done, then lets the next one come.

    Nothing is loaded or stored before the wait, neither what the kernel before writes nor what it still reads, so that
    memory may pass from one kernel to the next as on any stream. Every kernel of a chain waits, for the third one waits
    for the second alone: that one, done, has waited for the first. And it waits before it lets the next one come, so
    that whoever comes, of ours or not, comes after all that was before us.

    The next kernel's programs get places only when all of ours have theirs, since each has to have said so: they never
    take one from a program of ours that is still to come, nor can they and we wait for each other. Nor for tensor
    memory, which a kernel for sm_100 takes before anything else, this too: when they come, all of ours have theirs.

    In a kernel launched without the attribute the wait is over at once, and where nobody follows nobody is told.
    """
    if CHAINED:
        gdc_wait()
        gdc_launch_dependents()

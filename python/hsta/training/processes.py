"""What the processes that share a training say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_fabric import Fabric

from ..errors import UserError


@contextmanager
def told_once(fabric: Fabric) -> Iterator[None]:
    """A `UserError` that all processes meet alike is told by the first of them; the others end with its exit code."""
    try:
        yield
    except UserError:
        if fabric.is_global_zero:
            raise
        raise SystemExit(2) from None

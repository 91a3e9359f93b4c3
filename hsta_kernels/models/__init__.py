"""The HSTA model: the fused module, the plain PyTorch reference, and what creates, loads and saves them."""

from . import reference
from .config import HSTAConfig

__all__ = ["HSTAConfig", "reference"]

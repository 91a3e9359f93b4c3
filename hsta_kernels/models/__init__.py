"""The HSTA model: the fused module, the plain PyTorch reference, and what creates, loads and saves them."""

from . import reference
from .attention_maps import cls_attention
from .config import HSTAConfig
from .hsta import HSTA
from .registry import create_model, list_models

__all__ = ["HSTA", "HSTAConfig", "cls_attention", "create_model", "list_models", "reference"]

"""Fast kernels for Hierarchical Space-Time Attention (arXiv 2405.03202) and the HSTA model built on them."""

import torch

if torch.__version__ < "2.6":  # a TorchVersion, which compares as versions do
    raise ImportError(f"hsta_kernels needs PyTorch 2.6 or later; this is {torch.__version__}")

from hsta_kernels import export, inference, ops, tensor_files
from hsta_kernels.backends import BackendError, available_backends, backend, set_backend
from hsta_kernels.models import HSTA, HSTAConfig, cls_attention, create_model, list_models, reference
from hsta_kernels.patching import PatchReport, patch, unpatch

__version__ = "0.1.0"

__all__ = [
    "HSTA",
    "BackendError",
    "HSTAConfig",
    "PatchReport",
    "available_backends",
    "backend",
    "cls_attention",
    "create_model",
    "export",
    "inference",
    "list_models",
    "ops",
    "patch",
    "reference",
    "set_backend",
    "tensor_files",
    "unpatch",
]

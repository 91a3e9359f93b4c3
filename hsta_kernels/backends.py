"""Which implementation of an operator runs, and why another one does not.

``auto`` takes, for every call, the first backend of `PREFERENCE` that accepts the call's tensors and is not one of
`OPT_IN`, and falls back to the plain PyTorch reference; why a backend was passed over is logged at debug level (logger
``hsta_kernels``). A backend asked for by name is taken or the call raises `BackendError` with the reason.

The choice is process-wide, like PyTorch's own backend flags, and is made when an operator's forward runs: its backward
uses the same backend, whichever thread it runs in.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from hsta_kernels.onlookers import onlooker

PREFERENCE = ("cuda", "triton", "cpu")
OPT_IN = ("cuda",)  # not chosen automatically before measurements on a GPU say for what it is faster than the next
NAMES = ("auto", *PREFERENCE, "reference")

_logger = logging.getLogger("hsta_kernels")


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot do what it was asked."""


def _check_name(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}; got {name!r}")
    return name


def _load(name: str, kind: str, remedy: str) -> tuple[ModuleType | None, str | None]:
    """One of our extension modules, or why there is none."""
    try:
        # Not `from hsta_kernels import`: of a missing module that would say that hsta_kernels is imported in a circle.
        return importlib.import_module(f"hsta_kernels.{name}"), None
    except ModuleNotFoundError:
        return None, f"the {kind} kernels are not built; {remedy} build them"
    except ImportError as error:
        return None, f"the {kind} kernels cannot be loaded ({error}); {remedy} build them anew"


def _load_cpu() -> tuple[ModuleType | None, str | None]:
    # torch is imported above, on purpose: the module takes its OpenMP runtime from there.
    module, reason = _load("_cpu", "CPU", "a C++ compiler and `pip install -e .`")
    if module is None:
        return None, reason
    try:
        module.cpu_isa()  # raises when HSTA_CPU_ISA names what this processor cannot run
    except RuntimeError as error:
        return None, str(error)
    return module, None


cpu, _cpu_error = _load_cpu()
cuda, _cuda_error = _load("_cuda", "CUDA", "nvcc and `HSTA_BUILD_CUDA=1 pip install -e .`")
cuda_emulated = False  # the tests put kernels that run on the CPU in place of `cuda`
_triton_installed = importlib.util.find_spec("triton") is not None
triton_interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # Triton kernels then run on the CPU, as Python
_requested = _check_name(os.environ.get("HSTA_BACKEND", "auto"), "the environment variable HSTA_BACKEND")


def unavailable(name: str) -> str | None:
    """Why backend `name` cannot run anything on this machine, or None when it can."""
    if name in ("auto", "reference"):
        return None
    if name == "cpu":
        return _cpu_error
    if not any(name in operator.implementations for operator in OPERATORS.values()):
        return f"this version of hsta_kernels has no {name} kernels"
    if name == "triton" and not _triton_installed:
        return "Triton is not installed; it comes with PyTorch's builds for NVIDIA and AMD GPUs"
    if name == "cuda" and cuda is None:
        return _cuda_error
    if (name == "triton" and triton_interpreted) or (name == "cuda" and cuda_emulated):
        return None
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    return None


def available_backends() -> tuple[str, ...]:
    """The backends that run on this machine, preferred first; ``reference`` always does.

    `python -m hsta_kernels.info` also says why the others do not.
    """
    return tuple(name for name in (*PREFERENCE, "reference") if unavailable(name) is None)


def set_backend(name: str) -> None:
    """Chooses the backend of every following operator call in this process.

    Args:
        name: ``"auto"``, ``"cuda"``, ``"triton"``, ``"cpu"`` or ``"reference"``.

    Raises:
        ValueError: `name` is none of these.
        BackendError: the backend cannot run on this machine; the message says why.
    """
    global _requested
    reason = unavailable(_check_name(name, "name"))
    if reason is not None:
        raise BackendError(f"backend {name!r} is not available: {reason}")
    _requested = name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Context manager form of `set_backend`: the previous choice returns at the end of the block."""
    previous = _requested
    set_backend(name)
    try:
        yield
    finally:
        set_backend(previous)


class Operator:
    """An operator's implementations, and the choice among them. Making one enters it into `OPERATORS`.

    Args:
        name: as in ``hsta_kernels.ops``.
        implementations: for each backend a module that has ``refuse(*arguments)``, which says why it cannot run a call,
            or returns None, and the operator's passes. `arguments` are those that decide, tensors first.
        example: makes such arguments from a function that makes a tensor of a shape.
    """

    def __init__(
        self,
        name: str,
        implementations: Mapping[str, Any],
        example: Callable[[Callable[..., torch.Tensor]], tuple[Any, ...]],
    ) -> None:
        self.name, self.implementations, self.example = name, implementations, example
        OPERATORS[name] = self

    def refusal(self, name: str, *arguments: Any) -> str | None:
        """Why backend `name` would not run the operator on `arguments`, or None when it would.

        Whether PyTorch sees a GPU takes longer to find out than what a tensor's device is, and is asked last.
        """
        if name not in self.implementations:
            return f"{self.name} has no {name} kernel"
        return self.implementations[name].refuse(*arguments) or unavailable(name)

    def choose(self, *arguments: Any, tensors: Sequence[torch.Tensor | None] = (), requested: str | None = None) -> str:
        """The backend that runs the operator on `arguments`: a name of `PREFERENCE`, or ``"reference"``.

        Args:
            arguments: those that decide.
            tensors: all tensors of the call. Where somebody looks at what is done to one of them, no kernel runs.
            requested: the call's own choice of a backend, before that of the process.

        Raises:
            ValueError: `requested` is no backend's name.
            BackendError: a backend was requested by name and refuses these arguments.
        """
        wanted = _requested if requested is None else _check_name(requested, "backend")
        if wanted == "reference":
            return "reference"
        looked_at = onlooker(tensors)
        if wanted != "auto":
            reason = unavailable(wanted) or looked_at or self.refusal(wanted, *arguments)
            if reason is not None:
                raise BackendError(f"backend {wanted!r} cannot run {self.name}: {reason}")
            return wanted
        if looked_at is not None:
            if not torch.compiler.is_compiling():
                _logger.debug("%s: no kernel: %s", self.name, looked_at)
            return "reference"
        for name in PREFERENCE:
            reason = "it is taken only where asked for" if name in OPT_IN else self.refusal(name, *arguments)
            if reason is None:
                return name
            if not torch.compiler.is_compiling():
                _logger.debug("%s: not %s: %s", self.name, name, reason)
        return "reference"


OPERATORS: dict[str, Operator] = {}

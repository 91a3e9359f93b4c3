"""``python -m hsta_kernels.info``: versions, hardware, what is built, and which implementation each operator takes."""

from __future__ import annotations

import sys

import torch

import hsta_kernels
from hsta_kernels import backends
from hsta_kernels.processor import processor_name


def _gpus() -> list[str]:
    try:
        import pynvml
    except ImportError:
        return ["unknown: nvidia-ml-py is not installed (extra: gpu)"]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [f"none: {error}"]
    lines = []
    driver = pynvml.nvmlSystemGetDriverVersion()
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30
        lines.append(f"{pynvml.nvmlDeviceGetName(handle)}, sm_{major}{minor}, {memory:.0f} GiB, driver {driver}")
    pynvml.nvmlShutdown()
    return lines or ["none"]


def _choices(device: str) -> list[str]:
    lines = []
    for operator in backends.OPERATORS.values():
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            arguments = operator.example(lambda *shape, dtype=dtype: torch.empty(shape, dtype=dtype, device=device))
            try:
                choice = operator.choose(*arguments)
            except backends.BackendError as error:
                choice = f"refused: {error}"
            lines.append(f"  {operator.name:22} {device:5} {str(dtype).removeprefix('torch.'):9} {choice}")
    return lines


def report() -> str:
    """The whole report as text."""
    lines = [
        f"hsta_kernels {hsta_kernels.__version__}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}",
        f"processor: {processor_name()}, {torch.get_num_threads()} threads",
        *(f"GPU: {line}" for line in _gpus()),
        "",
        "backends",
    ]
    for name in (*backends.PREFERENCE, "reference"):
        reason = backends.unavailable(name)
        lines.append(f"  {name:10} " + ("available" if reason is None else f"not available: {reason}"))
    if backends.cpu is not None:
        lines.append(
            f"  CPU kernels for {backends.cpu.cpu_isa()} are in use; this processor can run "
            f"{backends.cpu.runnable_cpu_isas()} (HSTA_CPU_ISA chooses)"
        )
    lines += ["", "what each operator takes"]
    for device in ["cpu"] + (["cuda"] if torch.cuda.is_available() else []):
        lines += _choices(device)
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())

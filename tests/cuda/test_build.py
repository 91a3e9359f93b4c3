"""The CUDA module as an installation builds it: for which GPUs, and what becomes of it where there is none."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import torch

from tests.cuda.building import Build, configure, nvcc_version


@pytest.fixture
def module(build: Build):
    spec = importlib.util.spec_from_file_location("_cuda", build.module)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(nvcc_version() is None, reason="nvcc is not installed on this machine")
@pytest.mark.parametrize(
    ("nvidia_smi", "architectures"),
    [("echo 9.0; echo 9.0; echo 8.6", {"90a", "86"}), ("exit 1", {"80", "90a", "100"})],
    ids=("this machine's GPUs", "no GPU"),
)
def test_architectures(nvidia_smi, architectures, tmp_path: Path):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{nvidia_smi}\n")
    program.chmod(0o755)
    configure(tmp_path / "build", path=tmp_path)
    assert set(re.findall(r"code=\[?sm_(\w+)", (tmp_path / "build" / "build.ninja").read_text())) == architectures


def test_it_needs_neither_a_driver_nor_a_shared_runtime(module):
    needed = subprocess.run(["ldd", module.__file__], capture_output=True, text=True, check=True).stdout
    assert not any(library in needed for library in ("libcuda", "libcudart", "libtorch"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU on this machine")
def test_without_a_gpu_a_call_says_so_and_names_the_operator_and_its_sizes(module):
    def call(kernel: str, *arguments: object) -> None:
        getattr(module, kernel)(*arguments, torch.empty, 0)

    missing = "(float32|float16|bfloat16) of shape .*: .*(driver|device)"
    rows, weight = torch.zeros(3, 8), torch.zeros(8)
    with pytest.raises(RuntimeError, match=rf"add_layer_norm_forward of float32 of shape \(3, 8\), {missing}"):
        call("add_layer_norm_forward", rows, rows, weight, weight, 1e-6, rows, rows)
    qkv, stats = torch.zeros(2, 16, 3, 2, 16, dtype=torch.bfloat16), torch.zeros(2, 2, 1, 2)
    with pytest.raises(RuntimeError, match=rf"space_time_attention_forward of bfloat16 .*, {missing}"):
        numbers = 0, 0, 0, 1, 3, 5, 0.25, 0.0, 0, 0, 0, 0.0
        call("space_time_attention_forward", *numbers, qkv, None, None, None, None, qkv[:, :, 0].contiguous(), stats)
    u, tokens = torch.zeros(2, 2, 16), torch.zeros(2, 8, 16).half()
    with pytest.raises(RuntimeError, match=rf"absorbed_attention_forward of float32 .*, {missing}"):
        call("absorbed_attention_forward", u, tokens[:, 0], tokens[:, 1:], 1e-6, 0.0, 0, u, stats[:, :, 0])


def test_it_asks_the_runtime_for_launches_and_limits_alone(build: Build):
    """What neither allocates nor synchronizes can be captured in a CUDA graph."""
    used = set()
    for compiled in build.objects.values():
        symbols = subprocess.run(["nm", "-u", compiled], capture_output=True, text=True, check=True).stdout
        used |= set(re.findall(r" (cuda\w+)", symbols))
    launches = {"cudaLaunchKernelExC", "cudaFuncSetAttribute", "cudaGetLastError", "cudaGetErrorString"}
    stubs = {"cudaLaunchKernel"}  # stand for the kernels on the host
    assert used <= launches | stubs | {"cudaGetDevice", "cudaDeviceGetAttribute"}
    assert "cudaLaunchKernelExC" in used

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
    [("echo 9.0; echo 9.0; echo 8.6", {"90a"}), ("echo 8.6", {"90a", "100"}), ("exit 1", {"90a", "100"})],
    ids=("this machine's GPUs", "none that the kernels run on", "no GPU"),
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
        getattr(module, kernel)(*arguments, 0)

    missing = "(float32|float16|bfloat16) of shape .*: .*(driver|device)"
    u, tokens, stats = torch.zeros(2, 2, 96), torch.zeros(2, 8, 96).half(), torch.zeros(2, 2, 2)
    of_shape = r"float32 of shape \(2, 2, 96\), .*"
    with pytest.raises(RuntimeError, match=rf"absorbed_attention_forward of {of_shape}{missing}"):
        call("absorbed_attention_forward", u, tokens[:, 0], tokens[:, 1:], 1e-6, 0.0, 0, u, stats)


def test_it_asks_the_runtime_for_launches_and_limits_alone(build: Build):
    """What neither allocates nor synchronizes can be captured in a CUDA graph."""
    used = set()
    for compiled in build.objects.values():
        symbols = subprocess.run(["nm", "-u", compiled], capture_output=True, text=True, check=True).stdout
        used |= set(re.findall(r" (cuda\w+)", symbols))
    launches = {"cudaLaunchKernelExC", "cudaFuncSetAttribute", "cudaGetLastError", "cudaGetErrorString"}
    stubs = {"cudaLaunchKernel"}  # stand for the kernels on the host
    assert used <= launches | stubs
    assert "cudaLaunchKernelExC" in used

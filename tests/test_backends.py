from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

import hsta_kernels
from hsta_kernels import BackendError, backends
from hsta_kernels.ops import space_time_attention

needs_cpu = pytest.mark.skipif(backends.cpu is None, reason="the CPU kernels are not built on this machine")


ATTENTION = backends.OPERATORS["space_time_attention"]


def choice(dtype: torch.dtype = torch.float32) -> str:
    return ATTENTION.choose(*ATTENTION.example(lambda *shape: torch.zeros(shape, dtype=dtype)))


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_reference_is_always_available():
    assert hsta_kernels.available_backends()[-1] == "reference"


@needs_cpu
def test_auto_prefers_kernels_and_falls_back_by_dtype():
    assert choice() == "cpu"
    assert choice(torch.float64) == "reference"


def test_context_manager_restores_even_after_an_error():
    with pytest.raises(KeyError), hsta_kernels.backend("reference"):
        assert choice() == "reference"
        raise KeyError
    assert backends._requested == "auto"


def test_unknown_name():
    with pytest.raises(ValueError, match="name must be one of auto, cuda, triton, cpu, reference; got 'gpu'"):
        hsta_kernels.set_backend("gpu")


@pytest.mark.parametrize("name", ("cuda", "triton"))
def test_unavailable_backend_raises_and_says_why(name):
    reason = backends.unavailable(name)
    if reason is None:
        hsta_kernels.set_backend(name)
        hsta_kernels.set_backend("auto")
        return
    with pytest.raises(BackendError, match=f"backend '{name}' is not available: "):
        hsta_kernels.set_backend(name)


def test_automatic_choice_takes_no_backend_that_must_be_asked_for(monkeypatch):
    monkeypatch.setattr(backends, "cuda", object())
    monkeypatch.setattr(backends, "cuda_emulated", True)  # then it takes tensors on the CPU
    operator, tokens = backends.OPERATORS["cross_modal_attention"], torch.zeros(1, 9, 96).bfloat16()
    assert operator.refusal("cuda", tokens, 2) is None
    assert operator.choose(tokens, 2) != "cuda"
    with hsta_kernels.backend("cuda"):
        assert operator.choose(tokens, 2) == "cuda"


def test_automatic_choice_says_why_when_logging_is_on(caplog):
    with caplog.at_level(logging.DEBUG, logger="hsta_kernels"):
        space_time_attention(torch.zeros(1, 7, 3, 1, 8, dtype=torch.float64), (2, 3), "time")
    assert "space_time_attention: not triton: " in caplog.text


def test_environment_variable():
    code = (
        "import torch, hsta_kernels.backends as b;"
        "operator = b.OPERATORS['space_time_attention'];"
        "print(operator.choose(*operator.example(torch.zeros)))"
    )
    assert python(code, HSTA_BACKEND="reference").stdout == "reference\n"
    bad = python(code, HSTA_BACKEND="fast")
    assert "the environment variable HSTA_BACKEND must be one of" in bad.stderr


def test_environment_variable_that_cannot_be_met_raises_at_the_call():
    code = (
        "import torch; from hsta_kernels.ops import space_time_attention as f;"
        "f(torch.zeros(1, 7, 3, 1, 8), (2, 3), 'time')"
    )
    assert "backend 'cuda' cannot run space_time_attention" in python(code, HSTA_BACKEND="cuda").stderr


def test_without_kernels_the_library_runs_on_the_reference():
    code = (
        "import sys; sys.modules['hsta_kernels._cpu'] = None\n"
        "import torch, hsta_kernels\n"
        "print(hsta_kernels.available_backends())\n"
        "print(hsta_kernels.ops.space_time_attention(torch.ones(1, 7, 3, 1, 8), (2, 3), 'time').sum().item())\n"
        "try: hsta_kernels.set_backend('cpu')\n"
        "except hsta_kernels.BackendError as error: print(error)\n"
    )
    lines = python(code).stdout.splitlines()
    assert lines[:2] == ["('reference',)", "56.0"]
    assert "the CPU kernels are not built; a C++ compiler" in lines[2]


def test_an_extension_that_does_not_load_says_why():
    code = (
        "import importlib, sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'hsta_kernels._cpu': raise ImportError('undefined symbol: omp_get_num_threads')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "import torch, hsta_kernels\n"
        "print(hsta_kernels.backends.unavailable('cpu'))\n"
    )
    assert "cannot be loaded (undefined symbol: omp_get_num_threads)" in python(code).stdout


def test_info_names_everything():
    done = subprocess.run([sys.executable, "-m", "hsta_kernels.info"], capture_output=True, text=True, check=True)
    for word in (
        "processor",
        "GPU",
        "cuda",
        "triton",
        "cpu",
        "reference",
        "space_time_attention",
        "bfloat16",
    ):
        assert word in done.stdout


@needs_cpu
def test_instruction_set_can_be_forced():
    for isa in backends.cpu.runnable_cpu_isas().split():
        done = python("import hsta_kernels.backends as b; print(b.cpu.cpu_isa())", HSTA_CPU_ISA=isa)
        assert done.stdout.strip() == isa
    done = python("import hsta_kernels.backends as b; print(b.unavailable('cpu'))", HSTA_CPU_ISA="z80")
    assert "HSTA_CPU_ISA=z80 is not one of the instruction sets built" in done.stdout


@needs_cpu
def test_a_call_names_its_backend():
    qkv = torch.randn(1, 7, 3, 1, 8)
    same = space_time_attention(qkv, (2, 3), "time", backend="reference")
    with hsta_kernels.backend("reference"):
        assert torch.equal(space_time_attention(qkv, (2, 3), "time"), same)
        ours = space_time_attention(qkv, (2, 3), "time", backend="cpu")
    assert torch.equal(ours, space_time_attention(qkv, (2, 3), "time")) and not torch.equal(ours, same)
    with pytest.raises(BackendError, match="cannot run space_time_attention: qkv is torch\\.float64"):
        space_time_attention(qkv.double(), (2, 3), "time", backend="cpu")
    with pytest.raises(ValueError, match="backend must be one of auto, cuda, triton, cpu, reference; got 'gpu'"):
        space_time_attention(qkv, (2, 3), "time", backend="gpu")


def test_importing_does_not_import_triton():
    done = python("import hsta_kernels, sys; assert 'triton' not in sys.modules; import hsta_kernels.info")
    assert done.returncode == 0, done.stderr

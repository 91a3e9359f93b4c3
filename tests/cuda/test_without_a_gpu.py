"""The built CUDA module where no GPU is: it loads, and says so when called."""

from __future__ import annotations

import subprocess

import pytest
import torch

from hsta_kernels import backends

if backends.cuda is None or backends.cuda_emulated:
    pytest.skip("the CUDA kernels are not built in this checkout", allow_module_level=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU on this machine")
def test_a_call_says_what_is_missing_and_names_the_operator_and_its_sizes():
    with pytest.raises(RuntimeError, match=r"add_layer_norm of 3 rows of 8 float32, forward: .*(driver|device)"):
        backends.cuda.add_layer_norm_forward(0, 0, (3, 8), 1e-6, 0, 0, (8, 8), 0, 0, 0, 0, 0)
    sizes = (2, 1, 3, 5, 2, 16)
    with pytest.raises(RuntimeError, match=r"2 samples of 1 \+ 3 x 5 tokens, 2 heads of 16 bfloat16, forward: .*"):
        backends.cuda.space_time_attention_forward(1, sizes, 0.25, 0, (0, 0, 0, 0), 0, 0, 0, 0)
    with pytest.raises(RuntimeError, match=r"2 samples of 1 \+ 7 rows of 16 float16, 2 heads, forward: .*"):
        backends.cuda.cross_modal_attention_forward(2, (2, 7, 2, 16), 1e-6, 0, 0, 0, 0, (0, 0), 0, 0, 0, 0)


def test_it_needs_neither_a_driver_nor_a_shared_runtime():
    needed = subprocess.run(["ldd", backends.cuda.__file__], capture_output=True, text=True, check=True).stdout
    assert not any(library in needed for library in ("libcuda", "libcudart", "libtorch"))

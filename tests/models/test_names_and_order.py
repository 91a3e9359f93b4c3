"""One order of video and special; names that classes had before."""

from __future__ import annotations

import inspect
import pickle

import pytest

from hsta_kernels import cls_attention, inference, reference
from hsta_kernels.models import hsta

TAKE_BOTH = {
    "model": reference.HSTA.forward,
    "check_inputs": reference.HSTA.check_inputs,
    "classify": reference.HSTA.classify,
    "block": reference.Block.forward,
    "fused block": hsta.Block.forward,
    "frozen": inference.FrozenHSTA.forward,
    "cls_attention": cls_attention,
}


@pytest.mark.parametrize("function", TAKE_BOTH)
def test_the_video_comes_first(function):
    names = [name for name in inspect.signature(TAKE_BOTH[function]).parameters if name in ("video", "special")]
    assert names == ["video", "special"]


@pytest.mark.parametrize("module", [reference, hsta], ids=["reference", "fused"])
def test_the_former_name_is_found_with_a_warning(module):
    told = rf"{module.__name__}\.Fusion is now called CrossModalAttention"
    with pytest.warns(DeprecationWarning, match=told) as warnings:
        assert module.Fusion is module.CrossModalAttention
    assert [warning.filename for warning in warnings] == [__file__]
    with pytest.warns(DeprecationWarning, match=told):
        assert pickle.loads(f"c{module.__name__}\nFusion\n.".encode()) is module.CrossModalAttention
    with pytest.raises(AttributeError, match=rf"module '{module.__name__}' has no attribute 'Confusion'"):
        _ = module.Confusion

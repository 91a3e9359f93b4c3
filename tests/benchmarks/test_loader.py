"""The measurement of the loader runs, and its files are read as those of `hsta prepare`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import loader


@pytest.mark.parametrize("shards", ["0", "2"])
def test_every_combination_is_measured(shards, capsys):
    options = "--clips 3 --epochs 1 --batch-size 2 --size 32 --frames 2 4 --workers 0 1 --device cpu --shards"
    rates = loader.main([*options.split(), shards])
    assert [(rate.num_frames, rate.workers) for rate in rates] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert all(rate.loaded > 0 and rate.ready > 0 for rate in rates)
    assert [rate.a_processor is None for rate in rates] == [False, True, False, True]
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_clips_are_read_as_prepared_ones_are(tmp_path):
    (clip,) = loader.prepared_clips(tmp_path, 1, length=4, side=16)
    assert clip.frames.open().shape == (4, 16, 16, 3)
    assert clip.apex == 2


def test_shards_hold_the_same(tmp_path):
    clips = loader.prepared_clips(tmp_path, 3, length=4, side=16)
    sharded = loader.sharded_clips(tmp_path, clips, 2)
    assert [clip.frames.path.name for clip in sharded] == ["00000.tar", "00001.tar", "00001.tar"]
    for clip in sharded:
        clip.frames.check()
    assert [replace(mine, frames=clip.frames) for mine, clip in zip(sharded, clips, strict=True)] == clips

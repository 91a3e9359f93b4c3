"""The measurement of the loader runs, and its files are read as those of `hsta prepare`."""

from __future__ import annotations

from benchmarks import loader


def test_every_combination_is_measured(capsys):
    options = "--clips 3 --epochs 1 --batch-size 2 --size 32 --frames 2 4 --workers 0 1 --device cpu"
    rates = loader.main(options.split())
    assert [(rate.num_frames, rate.workers) for rate in rates] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert all(rate.loaded > 0 and rate.ready > 0 for rate in rates)
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_clips_are_read_as_prepared_ones_are(tmp_path):
    (clip,) = loader.prepared_clips(tmp_path, 1, length=4, side=16)
    assert clip.frames.open().shape == (4, 16, 16, 3)
    assert clip.apex == 2

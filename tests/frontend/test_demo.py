"""`hsta demo` from end to end, smaller still, and the table of speeds."""

from dataclasses import replace

import cv2
import hsta.cli.demo
import hsta.results.speed
import pytest
from hsta.cli import main
from hsta.results.speed import Comparison, compare, table

import hsta_kernels


def test_the_demo_says_what_it_did_and_where_the_pictures_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hsta.cli.demo, "SUBJECTS", 2)
    monkeypatch.setattr(hsta.cli.demo, "CLIPS_PER_SUBJECT", 4)
    monkeypatch.setattr(hsta.cli.demo, "MODEL", replace(hsta.cli.demo.MODEL, image_size=32, num_frames=2))
    monkeypatch.setattr(hsta.cli.demo, "RECIPE", replace(hsta.cli.demo.RECIPE, epochs=1, warmup_epochs=0))
    monkeypatch.setattr(hsta.results.speed, "compare", lambda *sizes, **options: [Comparison("inference", 0.03, 0.02)])
    assert main(["demo", "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in lines if line.startswith("[")] == [f"[{n}/6]" for n in range(1, 7)]
    for start in ("inference", "learned", "shuffled labels", "chance"):
        assert any(line.startswith(start) for line in lines), start
    assert "All figures are from generated data: they are no evidence about real faces." in lines
    pictures = [line.split("  ")[1] for line in lines[-4:]]
    assert pictures == [
        str(tmp_path / "faces.png"),
        str(tmp_path / "predictions" / "somebody.png"),
        str(tmp_path / "evaluation" / "confusion_matrix.png"),
        str(tmp_path / "control" / "confusion_matrix.png"),
    ]
    for picture in pictures:
        assert cv2.imread(picture) is not None


def test_both_modules_are_timed():
    config = hsta_kernels.HSTAConfig(image_size=32, embed_dim=(24, 48), num_heads=(1, 1), depth=((1, 1),), num_frames=2)
    inference, training = compare(config, batch_size=1, rounds=2)
    assert (inference.what, training.what) == ("inference", "training step")
    for comparison in (inference, training):
        assert comparison.reference > 0
        assert comparison.fused > 0


def test_the_ratio_is_above_1_where_fused_is_faster():
    comparison = Comparison("inference", reference=0.03, fused=0.02)
    assert comparison.ratio == pytest.approx(1.5)
    assert table([comparison]).splitlines()[1].split() == ["inference", "30.0", "ms", "20.0", "ms", "1.50x"]

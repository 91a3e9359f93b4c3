"""Onset, apex and offset from motion."""

import numpy as np
import pytest
from hsta.face.spotting import Motion, spot
from hsta.generated.clips import generate_clip, subject_portrait


@pytest.fixture(scope="module")
def clips():
    rows = []
    for subject in (1, 2, 3, 4):
        for number, emotion in enumerate(("happy", "surprise", "anger")):
            rng = np.random.default_rng([11, subject, number])
            rows.append(generate_clip(subject_portrait(0, subject), emotion, rng, amplitude=1.5, margin=0.6))
    return rows


def test_the_curve_peaks_at_the_apex(clips):
    near = 0
    for clip in clips:
        curve = Motion(clip.frames[clip.onset : clip.offset + 1]).since()
        assert (curve.shape, curve.dtype) == ((clip.offset - clip.onset + 1,), np.float32)
        assert curve[0] == 0
        near += abs(int(curve.argmax()) - (clip.apex - clip.onset)) <= 1
    assert near >= 10  # of 12


def test_the_curve_is_in_pixels_of_a_224_frame():
    rng = np.random.default_rng(0)
    frame = np.kron(rng.integers(60, 200, (28, 28, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    moved = frame.copy()
    moved[150:190, 70:150] = frame[148:188, 70:150]  # a mouth's worth of face, 2 px down
    still, there = Motion([frame, moved]).since()
    assert still == 0
    assert there == pytest.approx(2.0, abs=0.6)


def test_head_motion_is_left_out():
    frame = subject_portrait(0, 1).texture[::2, ::2]
    assert Motion([frame, np.roll(frame, (1, 2), axis=(0, 1))]).between(0, 1) < 0.4


def test_spotting_finds_the_micro_expression(clips):
    apexes, onsets = [], []
    for clip in clips:
        spotted = spot(Motion(clip.frames))
        assert 0 <= spotted.onset <= spotted.apex <= spotted.offset < len(clip.frames)
        assert spotted.offset - spotted.onset <= 30
        apexes.append(abs(spotted.apex - clip.apex))
        onsets.append(abs(spotted.onset - clip.onset))
    assert np.mean(np.array(apexes) <= 2) >= 0.75
    assert np.median(onsets) <= 2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_shortest_videos(clips, count):
    spotted = spot(Motion(clips[0].frames[:count]))
    assert 0 <= spotted.onset <= spotted.apex <= spotted.offset < count


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        spot(Motion([]))
    with pytest.raises(ValueError, match="onset must index the 2 frames, got 2"):
        Motion([np.zeros((8, 8, 3), np.uint8)] * 2).since(2)

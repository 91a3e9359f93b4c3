"""Onset, apex and offset from motion."""

import numpy as np
import pytest
from hsta.errors import UserError
from hsta.face.spotting import Motion, Spotter, spot
from hsta.generated.clips import generate_clip, subject_portrait


@pytest.fixture(scope="module")
def clips():
    rows = []
    for subject in (1, 2, 3, 4):
        for number, emotion in enumerate(("happy", "surprise", "anger")):
            rng = np.random.default_rng([11, subject, number])
            rows.append(generate_clip(subject_portrait(0, subject), emotion, rng, amplitude=1.5, margin=0.6))
    return rows


def seconds(frames, fps=30):
    return np.arange(len(frames)) / fps


def stream(frames, times, threshold=0.5):
    """What a `Spotter` finds, and the most frames that it held."""
    spotter = Spotter(threshold)
    found, held = [], 0
    for time, frame in zip(times, frames, strict=True):
        found += spotter.add(time, frame)
        held = max(held, len(spotter._faces), len(spotter._motion._grey))
    return found + spotter.finish(), held


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
        spotted = spot(Motion(clip.frames), seconds(clip.frames))
        assert 0 <= spotted.onset <= spotted.apex <= spotted.offset < len(clip.frames)
        assert spotted.offset - spotted.onset <= 30
        apexes.append(abs(spotted.apex - clip.apex))
        onsets.append(abs(spotted.onset - clip.onset))
    assert np.mean(np.array(apexes) <= 2) >= 0.75
    assert np.median(onsets) <= 2


def test_spotting_works_in_seconds(clips):
    clip = clips[0]
    events = spot(Motion(clip.frames), seconds(clip.frames))
    # Every frame doubled is the same film at 60 a second.
    twice = [frame for frame in clip.frames for _ in range(2)]
    doubled = spot(Motion(twice), seconds(twice, 60))
    assert [event // 2 for event in doubled] == list(events)
    # A fourth of them is one at 7.5, which still shows it.
    few = clip.frames[events.apex % 4 :: 4]
    assert spot(Motion(few), seconds(few, 7.5)).apex == events.apex // 4
    # Frames left out at random: those that are left keep their times.
    kept = np.sort(np.random.default_rng(0).permutation(len(clip.frames))[: 2 * len(clip.frames) // 3])
    kept = np.union1d(kept, events)
    varying = spot(Motion([clip.frames[t] for t in kept]), kept / 30)
    assert abs(kept[varying.apex] - events.apex) <= 1


def test_onset_and_offset_are_within_seconds_of_the_apex():
    class Steady(Motion):
        def between(self, before, after):
            return abs(before - after)

    frames = [np.zeros((8, 8, 3), np.uint8)] * 200
    onset, apex, offset = spot(Steady(frames), seconds(frames, 100))
    # Nine tenths of a quarter of a second before, and of half a second after.
    assert (apex - onset, offset - apex) == (23, 45)


def test_frames_beside_a_pause_are_not_compared_across_it(clips):
    first, second = clips[0], clips[3]
    frames = first.frames + second.frames  # another face: a jump larger than any expression
    times = np.concatenate([seconds(first.frames), 12 + seconds(second.frames)])
    events = spot(Motion(frames), times)
    assert tuple(events) == tuple(spot(Motion(first.frames), seconds(first.frames)))
    found, _ = stream(frames, times)
    assert [tuple(one.events) for one in found if one.events.offset < len(first.frames)] == [tuple(events)]
    for one in found:
        assert one.times[-1] - one.times[0] <= 0.76


def test_frames_too_far_apart_are_refused(clips):
    with pytest.raises(UserError, match="1 seconds from frame to frame are too many"):
        spot(Motion(clips[0].frames[:6]), np.arange(6.0))


def test_a_running_film_gives_the_same_and_holds_a_second_of_it(clips):
    frames, truth = [], []
    for clip in clips[:3] * 2:
        truth.append(len(frames) + clip.apex)
        frames += clip.frames[:46]
    found, held = stream(frames, seconds(frames), 1.0)
    assert held <= 45
    clip = clips[0]
    (alone,), _ = stream(clip.frames, seconds(clip.frames), 1.0)
    assert tuple(alone.events) == tuple(spot(Motion(clip.frames), seconds(clip.frames)))
    assert len(alone.faces) == len(alone.times) == alone.events.offset - alone.events.onset + 1
    assert alone.faces[0] is clip.frames[alone.events.onset]
    assert alone.times[0] == alone.events.onset / 30
    assert any(abs(one.events.apex - truth[0]) <= 1 for one in found)
    assert any(abs(one.events.apex - truth[3]) <= 1 for one in found)


def test_a_still_face_has_no_micro_expression(clips):
    still = generate_clip(subject_portrait(0, 1), "happy", np.random.default_rng([11, 1, 0]), amplitude=0.0, margin=0.6)
    assert stream(still.frames, seconds(still.frames), 0.7)[0] == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_shortest_videos(clips, count):
    spotted = spot(Motion(clips[0].frames[:count]), seconds(clips[0].frames[:count]))
    assert 0 <= spotted.onset <= spotted.apex <= spotted.offset < count


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        spot(Motion([]), [])
    with pytest.raises(ValueError, match="times must be as many as the 2 frames, got 3"):
        spot(Motion([np.zeros((8, 8, 3), np.uint8)] * 2), [0.0, 0.1, 0.2])
    with pytest.raises(ValueError, match="onset must index the 2 frames, got 2"):
        Motion([np.zeros((8, 8, 3), np.uint8)] * 2).since(2)

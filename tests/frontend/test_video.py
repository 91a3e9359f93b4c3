"""Reading and writing videos and folders of images."""

import av
import cv2
import hsta.data.video as video
import numpy as np
import pytest
from hsta.data.video import read_frames, write_video
from hsta.errors import UserError


def scene(count=6, height=64, width=96):
    """A bright square moving to the right over a smooth ground."""
    ground = np.linspace(40, 160, width, dtype=np.uint8)[None, :, None] * np.ones((height, 1, 3), np.uint8)
    frames = []
    for t in range(count):
        frame = ground.copy()
        frame[20:36, 8 + 8 * t : 24 + 8 * t] = (220, 60, 40)
        frames.append(frame)
    return frames


def test_a_video_comes_back(tmp_path):
    path = tmp_path / "made" / "clip.mp4"
    frames = scene()
    write_video(path, frames, 25.0)
    read, fps = read_frames(path)
    assert fps == 25.0
    assert len(read) == len(frames)
    assert {(frame.shape, frame.dtype) for frame in read} == {((64, 96, 3), np.dtype(np.uint8))}
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(read, frames, strict=True)) < 3
    assert [file.name for file in path.parent.iterdir()] == ["clip.mp4"]


def test_odd_sides_gain_a_pixel(tmp_path):
    write_video(tmp_path / "odd.mp4", scene(3, 63, 95), 29.97)
    read, fps = read_frames(tmp_path / "odd.mp4")
    assert read[0].shape == (64, 96, 3)
    assert fps == pytest.approx(29.97, abs=0.01)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, scene(2), 25)
    before = path.read_bytes()
    with pytest.raises(ValueError):
        write_video(path, [*scene(1), np.zeros((4, 4), np.uint8)], 25)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(path, [], 25)


def test_a_rotation_mark_is_obeyed(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    write_video(path, scene(1), 25)
    upright = read_frames(path)[0][0]

    class Turned:
        def __init__(self, frame):
            self.frame, self.rotation = frame, -90  # clockwise, as a telephone held upright marks it

        def to_ndarray(self, format):
            return self.frame.to_ndarray(format=format)

    opened = av.open

    class Container:
        def __init__(self, path):
            self.container = opened(path)
            self.streams = self.container.streams

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.container.close()

        def decode(self, stream):
            return map(Turned, self.container.decode(stream))

    monkeypatch.setattr(video.av, "open", Container)
    np.testing.assert_array_equal(read_frames(path)[0][0], np.rot90(upright, -1))


def test_a_folder_is_read_in_the_order_of_numbers(tmp_path):
    for number in (9, 10, 100, 1):
        cv2.imwrite(str(tmp_path / f"img{number}.png"), np.full((6, 8, 3), number, np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    frames, fps = read_frames(tmp_path)
    assert fps is None
    assert [int(frame[0, 0, 0]) for frame in frames] == [1, 9, 10, 100]


def test_colours_are_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "1.png"), np.full((6, 8, 3), (0, 0, 255), np.uint8))  # red, as OpenCV orders it
    assert read_frames(tmp_path)[0][0][0, 0].tolist() == [255, 0, 0]


def test_user_errors_name_the_path(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no such file or folder: .*nowhere\.mp4"):
        read_frames(tmp_path / "nowhere.mp4")
    with pytest.raises(UserError, match="no images"):
        read_frames(tmp_path)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(UserError, match=r"cannot read .*text\.mp4 as a video"):
        read_frames(tmp_path / "text.mp4")
    write_video(tmp_path / "long.mp4", scene(), 25)
    monkeypatch.setattr(video, "LARGEST", 64 * 96 * 3 * 4)
    with pytest.raises(UserError, match=r"long\.mp4 is too long"):
        read_frames(tmp_path / "long.mp4")
    folder = tmp_path / "mixed"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), np.zeros((4, 4, 3), np.uint8))
    cv2.imwrite(str(folder / "2.png"), np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(UserError, match=r"mixed differ in size"):
        read_frames(folder)

"""Reading and writing videos: when each frame was taken, and how it is shown."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import hsta.data.film
import numpy as np
import pytest
from hsta.data.film import Frame, hold
from hsta.data.image_folder import ImageFolder
from hsta.data.video import Video, write_video
from hsta.data.webcam import Webcam
from hsta.errors import UserError

from tests.frontend.films import write_film


def scene(count=6, height=64, width=96):
    """A bright square moving to the right over a smooth ground."""
    ground = np.linspace(40, 160, width, dtype=np.uint8)[None, :, None] * np.ones((height, 1, 3), np.uint8)
    frames = []
    for t in range(count):
        frame = ground.copy()
        frame[20:36, 8 + 8 * t : 24 + 8 * t] = (220, 60, 40)
        frames.append(frame)
    return frames


def corner(count=6, height=64, width=96):
    """A white corner, top left, on black."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:32, :32] = 255
    return [frame] * count


def read(path, fps=None):
    """Frames, their times and the notes."""
    film = Video(path, fps)
    frames, times = hold(film, str(path))
    return frames, times, film.notes


def difference(frames, others):
    return max(np.abs(a.astype(int) - b).mean() for a, b in zip(frames, others, strict=True))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux tells how many threads a process has")
def test_no_frame_leaves_threads_behind(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, scene(10) * 4, 25.0)
    threads = [len(list(Path("/proc/self/task").iterdir())) for _ in Video(path)]
    assert threads[-1] <= threads[10]


def test_a_video_comes_back(tmp_path):
    path = tmp_path / "made" / "clip.mp4"
    write_video(path, scene(), 25.0)
    frames, times, notes = read(path)
    np.testing.assert_allclose(times, np.arange(6) / 25, atol=1e-6)
    assert {(frame.shape, frame.dtype) for frame in frames} == {((64, 96, 3), np.dtype(np.uint8))}
    assert difference(frames, scene()) < 3
    assert notes == []
    assert [file.name for file in path.parent.iterdir()] == ["clip.mp4"]


def test_odd_sides_gain_a_pixel(tmp_path):
    write_video(tmp_path / "odd.mp4", scene(3, 63, 95), 29.97)
    frames, times, _ = read(tmp_path / "odd.mp4")
    assert frames[0].shape == (64, 96, 3)
    np.testing.assert_allclose(times, np.arange(3) / 29.97, atol=1e-5)


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


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
@pytest.mark.parametrize(
    "stamps",
    [[0, 33, 67, 100, 133, 167], [0, 145, 290, 435, 580, 725], [0, 5, 100, 10100, 10110, 10200], [500, 533, 567]],
    ids=["30 a second", "6.9 a second", "a pause of ten seconds", "a late start"],
)
def test_times_are_those_of_the_stamps_in_a_file_that_declares_1000_a_second(tmp_path, ending, stamps):
    path = tmp_path / f"film.{ending}"
    write_film(path, scene(len(stamps)), stamps)
    frames, times, notes = read(path)
    np.testing.assert_allclose(times, (np.array(stamps) - stamps[0]) / 1000, atol=1e-6)
    assert difference(frames, scene(len(stamps))) < 8
    assert notes == []


def test_a_given_rate_replaces_the_stamps(tmp_path):
    write_film(tmp_path / "slow.mkv", scene(), [0, 40, 80, 120, 160, 200])
    np.testing.assert_allclose(read(tmp_path / "slow.mkv", 200)[1], np.arange(6) / 200)


def test_stamps_that_go_back_are_noted_and_time_goes_on(tmp_path):
    for name in ("a", "b"):
        write_film(tmp_path / f"{name}.ts", scene(), [0, 40, 80, 120, 160, 200])
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    frames, times, notes = read(joined)
    np.testing.assert_allclose(times, np.arange(12) * 0.04, atol=1e-3)
    assert len(frames) == 12
    assert notes == ["timestamps go back after 0.20 seconds: the film is taken to go on"]


def test_frames_without_stamps_get_the_declared_rate_with_a_note(tmp_path):
    write_film(tmp_path / "raw.h264", scene(), rate=25, bframes=False)
    _, times, notes = read(tmp_path / "raw.h264")
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-6)
    assert notes == ["frames without a timestamp: taken to be 0.04 seconds apart (--fps tells the rate)"]


@pytest.mark.parametrize("flag", [True, False], ids=["marked", "not marked"])
def test_a_cover_picture_is_not_the_film(tmp_path, flag):
    cover = np.full((128, 128, 3), 200, np.uint8)
    write_film(tmp_path / "film.mkv", scene(), cover=cover, cover_is_marked=flag)
    with av.open(str(tmp_path / "film.mkv")) as container:
        assert container.streams.video[0].codec_context.name == "mjpeg"
    frames, _, notes = read(tmp_path / "film.mkv")
    assert difference(frames, scene()) < 3
    assert notes == []


def test_a_file_with_nothing_but_a_cover_is_refused(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.height = cover.width = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(cover.encode())
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    with pytest.raises(UserError, match="no video in"):
        read(path)


def test_of_two_films_the_larger_is_taken_with_a_note(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        for size in ((32, 32), (64, 96)):
            stream = container.add_stream("mpeg4", rate=25)
            stream.height, stream.width = size
        for number, frame in enumerate(scene()):
            for stream in container.streams.video:
                picture = av.VideoFrame.from_ndarray(frame[: stream.height, : stream.width], format="rgb24")
                picture.pts, picture.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(picture))
        for stream in container.streams.video:
            container.mux(stream.encode())
    frames, _, notes = read(path)
    assert frames[0].shape == (64, 96, 3)
    assert notes == ["2 video streams: number 1, 96x64, is taken"]


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [False, True])
def test_rotation_and_mirror_marks_are_obeyed(tmp_path, turn, mirror):
    write_film(tmp_path / "film.mp4", corner(2), turn=turn, mirror=mirror)
    shown = np.rot90(corner()[0], turn // 90)
    shown = shown[:, ::-1] if mirror else shown
    frames, _, notes = read(tmp_path / "film.mp4")
    assert difference(frames, [shown] * 2) < 3
    assert notes == []


def test_pixels_that_are_not_square_are_made_square(tmp_path):
    for pixel, shape, told in (
        (Fraction(4, 3), (64, 128, 3), "4:3: made square, 128x64"),
        (Fraction(1, 2), (128, 96, 3), "1:2: made square, 96x128"),
    ):
        write_film(tmp_path / "film.mkv", scene(), pixel=pixel)
        frames, _, notes = read(tmp_path / "film.mkv")
        assert {frame.shape for frame in frames} == {shape}
        assert notes == [f"pixels of {told}"]


def test_ten_bits_are_read_as_eight(tmp_path):
    write_film(tmp_path / "film.mkv", scene(), pixels="yuv420p10le")
    frames, _, notes = read(tmp_path / "film.mkv")
    assert difference(frames, scene()) < 3
    assert notes == []


def test_frames_of_another_size_are_fitted_with_a_note(tmp_path):
    for name, size in (("a", (64, 96)), ("b", (32, 96))):
        write_film(tmp_path / f"{name}.ts", corner(6, *size))
    path = tmp_path / "joined.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    frames, _, notes = read(path)
    assert len(frames) == 12
    assert {frame.shape for frame in frames} == {(64, 96, 3)}
    assert frames[-1][:14].max() < 20 and frames[-1][18:46, 2:30].min() > 230  # the same shape, in the middle
    assert "frames change to 96x32: fitted into 96x64" in notes


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4"])
def test_damaged_frames_and_those_made_from_them_are_left_out_with_a_note(tmp_path, codec):
    path = tmp_path / "film.mkv"
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    shift = [np.roll(noise, t, axis=1) for t in range(30)]  # of some bytes a frame
    write_film(path, shift, codec=codec, pixels="yuvj420p" if codec == "mjpeg" else "yuv420p", rate=25)
    whole, times, _ = read(path)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][14]
    half = packet.size // 2
    data[packet.pos + half : packet.pos + 2 * half] = np.random.default_rng(1).bytes(half)
    path.write_bytes(data)
    frames, left, notes = read(path)
    assert 15 <= len(frames) < 30
    assert difference(frames, [whole[int(np.abs(times - time).argmin())] for time in left]) == 0
    assert notes == [f"frames left out because they are damaged or made from damaged ones: {30 - len(frames)}"]


def test_an_early_end_is_noted(tmp_path):
    path = tmp_path / "film.mkv"
    write_film(path, scene(30, 64, 320), [100 * t for t in range(30)], codec="mjpeg", pixels="yuvj420p")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    frames, _, notes = read(path)
    assert 10 < len(frames) < 20
    assert notes[-1].startswith("ends after 1.") and notes[-1].endswith(" of the 2.9 seconds that it declares")


def test_a_folder_is_read_in_the_order_of_numbers(tmp_path):
    for number in (9, 10, 100, 1):
        cv2.imwrite(str(tmp_path / f"img{number}.png"), np.full((6, 8, 3), number, np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    film = ImageFolder(tmp_path)
    frames, times = hold(film, "film")
    assert [int(frame[0, 0, 0]) for frame in frames] == [1, 9, 10, 100]
    np.testing.assert_allclose(times, np.arange(4) / 30)
    assert film.notes == ["a folder tells no rate: 30 frames a second are assumed (--fps tells it)"]
    film = ImageFolder(tmp_path, 200)
    np.testing.assert_allclose(hold(film, "film")[1], np.arange(4) / 200)
    assert film.notes == []


def test_colours_are_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "1.png"), np.full((6, 8, 3), (0, 0, 255), np.uint8))  # red, as OpenCV orders it
    assert next(iter(ImageFolder(tmp_path))).picture[0, 0].tolist() == [255, 0, 0]


class Camera:
    """Blue, as OpenCV orders it, ten times a second."""

    frames = 100
    now = 0.0

    def __init__(self, number):
        self.sent = 0

    def isOpened(self):
        return True

    def read(self):
        self.sent += 1
        Camera.now += 0.1
        return self.sent <= self.frames, np.full((6, 8, 3), (255, 0, 0), np.uint8)

    def release(self):
        pass


@pytest.fixture
def camera(monkeypatch):
    monkeypatch.setattr("hsta.data.webcam.cv2.VideoCapture", Camera)
    monkeypatch.setattr("hsta.data.webcam.time.monotonic", lambda: Camera.now)
    return Camera


def test_a_webcam_is_watched_for_some_seconds(camera):
    frames, times = hold(Webcam(0, 0.55), "webcam")
    np.testing.assert_allclose(times, np.arange(6) / 10, atol=1e-9)
    assert frames[0][0, 0].tolist() == [0, 0, 255]


def test_a_webcam_that_stops_is_noted_and_one_that_is_not_there_refused(camera, monkeypatch):
    monkeypatch.setattr(camera, "frames", 3)
    film = Webcam(0, 5.0)
    assert len(list(film)) == 3
    assert film.notes == ["the webcam stopped after 0.3 seconds"]
    monkeypatch.setattr(camera, "frames", 0)
    with pytest.raises(UserError, match="webcam 0 sends no frames"):
        list(film)
    monkeypatch.setattr(camera, "isOpened", lambda self: False)
    with pytest.raises(UserError, match="no webcam 0 on this machine"):
        list(film)


def test_a_film_is_read_as_it_is_asked_for(tmp_path):
    write_video(tmp_path / "clip.mp4", scene(), 25.0)
    first = next(iter(Video(tmp_path / "clip.mp4")))
    assert isinstance(first, Frame) and first.time == 0


def test_user_errors_name_the_path(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no such file or folder: .*nowhere\.mp4"):
        read(tmp_path / "nowhere.mp4")
    with pytest.raises(UserError, match="no images"):
        list(ImageFolder(tmp_path))
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(UserError, match=r"cannot read .*text\.mp4 as a video"):
        read(tmp_path / "text.mp4")
    write_video(tmp_path / "long.mp4", scene(), 25)
    monkeypatch.setattr(hsta.data.film, "LARGEST", 64 * 96 * 3 * 4)
    with pytest.raises(UserError, match=r"long\.mp4 is too long"):
        read(tmp_path / "long.mp4")
    folder = tmp_path / "mixed"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), np.zeros((4, 4, 3), np.uint8))
    cv2.imwrite(str(folder / "2.png"), np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(UserError, match=r"mixed differ in size"):
        list(ImageFolder(folder))

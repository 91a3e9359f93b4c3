"""`hsta serve` over HTTP: what it answers, and what it refuses, and when."""

import asyncio
import contextlib
import gzip
import json
import socket
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hsta.cli import main
from hsta.serving.limits import Limits
from hsta.serving.work import FILM
from hsta.serving.workers import Workers

from tests.frontend.serving import filmed, serving


def pictures(count=12, size=(64, 64)):
    """Bytes of png files, and the query that tells them apart."""
    ramp = np.tile(np.linspace(0, 255, size[1], dtype=np.uint8), (size[0], 1))
    files = [cv2.imencode(".png", np.roll(ramp, 3 * number, axis=1))[1].tobytes() for number in range(count)]
    return b"".join(files), "lengths=" + ",".join(str(len(file)) for file in files)


def begin(server, *headers):
    """A connection on which an upload was announced, and nothing of it sent."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=300)
    lines = ["POST /predict HTTP/1.1", f"Host: 127.0.0.1:{server.port}", *headers, "", ""]
    connection.sendall("\r\n".join(lines).encode())
    return connection


def read_all(connection):
    """Status and JSON of the one answer on a connection that the server closes."""
    with connection.makefile("rb") as file:
        head, _, body = file.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_the_answer_is_that_of_predict(server, clips, checkpoint, tmp_path, capsys):
    status, answer = server.predict(clips[0].read_bytes())
    assert status == 200, answer
    assert main(["predict", str(clips[0]), "--checkpoint", str(checkpoint), "--output", str(tmp_path), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert answer["result"] == {**expected, "file": "the film"}
    assert len(expected["moments"]) == len(expected["attention_over_time"]) == 2
    assert answer["face"].startswith("iVBORw0KGgo")  # a png file
    assert server.kept() == []


def test_given_events_are_predicted_from(server, clips):
    status, answer = server.predict(clips[0].read_bytes(), "onset=3&apex=5&offset=9&fps=60")
    assert status == 200, answer
    result = answer["result"]
    assert [result[name] for name in ("onset", "apex", "offset", "spotted")] == [3, 5, 9, False]
    assert result["times"][1] == pytest.approx(1 / 60)


def test_pictures_are_a_film(server):
    status, answer = server.predict(*pictures())
    assert status == 200, answer
    assert len(answer["result"]["times"]) == 12


def test_two_at_once_each_have_their_own(server, clips):
    films = [clip.read_bytes() for clip in clips]
    alone = [server.predict(film) for film in films]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(server.predict, films)) == alone


def png_header(width, height):
    """The first bytes of a png file of so many pixels."""
    start = cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes()[:16]
    head = start + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return head + zlib.crc32(head[12:]).to_bytes(4, "big") + b"\x00\x00\x00\x00IDAT"


PLAIN = [np.full((32, 32, 3), 100 + number % 2, np.uint8) for number in range(101)]
PNG = cv2.imencode(".png", PLAIN[0])[1].tobytes()
TEN, LENGTHS = pictures(10)
HUGE, LARGE = png_header(70000, 70000), png_header(8000, 4000)
NO_FILM = "no film that can be read"
# What is uploaded (a name is that of a film below), the query, the status, and what the sentence says.
REFUSED = {
    "a picture": (PNG, "", 422, NO_FILM),
    "text": (b"no video\n" * 1000, "", 422, NO_FILM),
    "a playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "", 422, NO_FILM),
    "a list of films": (b"ffconcat version 1.0\nfile '/etc/hostname'\n", "", 422, NO_FILM),
    "a film cut off": ("half", "", 422, NO_FILM),
    "a pickle": (b"cbuiltins\nexit\n(tR.", "", 422, NO_FILM),
    "nothing": (b"", "", 400, "the upload is empty"),
    "one frame": ("one", "", 422, "one frame only"),
    "many frames": ("many", "", 422, "more than 100 frames"),
    "a long film": ("film", "fps=5", 422, "more than 5 seconds"),
    "many pictures": (b"", "lengths=" + ",".join(101 * "0"), 413, "more than 100 pictures"),
    "heavy pictures": (b"", "lengths=1000000,1000001", 413, "larger than 2 MB"),
    "other pictures": (TEN + PNG, f"{LENGTHS},{len(PNG)}", 422, "the pictures differ in size: 32x32, 64x64"),
    "no picture": (TEN + b"text", f"{LENGTHS},4", 422, "file 11 is no picture that can be read"),
    "huge pictures": (HUGE * 2, f"lengths={len(HUGE)},{len(HUGE)}", 422, "file 1 is no picture that can be read"),
    "large pictures": (LARGE * 2, f"lengths={len(LARGE)},{len(LARGE)}", 422, "frames of 8000x4000 are too large"),
    "less than said": (TEN, f"{LENGTHS},4", 400, "the upload ended before its end"),
    "more than said": (TEN + b"text", LENGTHS, 400, "the upload is longer than its lengths"),
    "odd lengths": ("film", "lengths=1,-2", 400, "lengths must be a whole number"),
    "odd rate": ("film", "fps=fast", 400, "fps must be a positive number"),
    "no rate": ("film", "fps=nan", 400, "fps must be a positive number"),
    "half the events": ("film", "onset=3", 400, "onset and offset go together"),
    "odd events": ("film", "onset=9&apex=5&offset=9", 400, "must be in order, got 9, 5, 9"),
    "no such frame": ("film", "onset=3&offset=99", 422, "onset and offset must be in order and in 0 to"),
}


@pytest.fixture(scope="module")
def films(tmp_path_factory, clips):
    folder = tmp_path_factory.mktemp("films")
    film = clips[0].read_bytes()
    return {
        "film": film,
        "half": film[: len(film) // 2],
        "one": filmed(folder / "one.mp4", PLAIN[:1]).read_bytes(),
        "many": filmed(folder / "many.mp4", PLAIN).read_bytes(),
    }


@pytest.mark.parametrize("wrong", REFUSED)
def test_refused_in_a_sentence_and_nothing_is_kept(server, films, wrong):
    body, query, code, sentence = REFUSED[wrong]
    status, answer = server.predict(films[body] if isinstance(body, str) else body, query)
    assert (status, set(answer)) == (code, {"error"}), answer
    assert sentence in answer["error"]
    assert not any(letter in answer["error"] for letter in "/\n")  # of a path, of a traceback
    assert server.kept() == []


def test_an_upload_declared_too_large_is_refused_before_it_is_read(server):
    with begin(server, f"Content-Length: {2**31}") as connection:
        status, answer = read_all(connection)  # and the connection is closed
    assert (status, answer["error"]) == (413, "the upload is larger than 2 MB, the limit here: cut the film")


def test_an_upload_of_no_declared_length_is_refused_while_it_is_read(server):
    sent = 0
    with begin(server, "Transfer-Encoding: chunked") as connection:
        try:
            while sent < 2**31:
                connection.sendall(b"10000\r\n" + bytes(2**16) + b"\r\n")
                sent += 2**16
        except ConnectionError:
            pass
    assert 2e6 < sent < 64e6  # what the system holds between the two is of megabytes
    assert server.kept() == []


def test_a_packed_upload_is_not_unpacked(server):
    status, answer = server.predict(gzip.compress(bytes(10_000_000)), **{"Content-Encoding": "gzip"})
    assert status == 422
    assert "no film that can be read" in answer["error"]


def test_more_at_a_time_are_refused(server, clips):
    waiting = [begin(server, "Content-Length: 1000", "Expect: 100-continue") for _ in range(2)]
    for connection in waiting:
        assert connection.recv(100).startswith(b"HTTP/1.1 100")  # it is being received
    status, answer = server.predict(b"film")
    assert (status, answer["error"]) == (
        503,
        "2 uploads are being looked at, as many as may be: try again in a moment",
    )
    for connection in waiting:
        connection.close()
    while (found := server.predict(clips[0].read_bytes()))[0] == 503:
        pass  # until it has heard that they are gone
    assert found[0] == 200
    assert server.kept() == []


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "localhost"}, 200),
        ({"Host": "localhost:{port}", "Origin": "http://localhost:{port}"}, 200),
        ({"Host": "[::1]:{port}"}, 200),
        ({"Host": "films.example"}, 403),
        ({"Host": "127.0.0.1.films.example:{port}"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "films.example:{port}", "Origin": "http://films.example:{port}"}, 403),
        ({"Origin": "http://films.example"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_pages_of_others_are_not_answered(server, headers, code):
    headers = {name: value.format(port=server.port) for name, value in headers.items()}
    status, answer = server.predict(*pictures(), **headers)
    assert status == code, answer


def test_the_page_needs_nothing_else_and_runs_nothing_of_others(server):
    status, headers, text = server.get("/")
    assert status == 200
    assert "At most 2 MB, 5 seconds and 100 frames" in text
    assert "http:" not in text and "https:" not in text
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    for path, kind in (("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, headers, _ = server.get(path)
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
    assert server.get("/page.html")[0] == server.get("/%2e%2e/server.py")[0] == 404
    assert "Python" not in headers["Server"]


def test_time_is_up_and_files_are_gone_and_the_server_ends(checkpoint, tmp_path):
    with serving(checkpoint, tmp_path / "temporary", "--timeout 0.2 --at-once 1") as server:
        with begin(server, "Content-Length: 1000") as connection:
            connection.sendall(b"not all")
            status, answer = read_all(connection)
        assert (status, answer["error"]) == (504, "this took more than 0.2 seconds, the limit here: try a shorter film")
        assert server.kept() == []
        server.process.terminate()
        assert server.process.wait(300) == 0
        assert list(server.temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process has, to limit it")
def test_a_process_has_so_much_memory_and_no_more():
    code = """
import numpy
from hsta.serving.work import limit_memory
limit_memory(0.25)
few = numpy.ones(2**26, numpy.uint8)
try:
    numpy.ones(2**28, numpy.uint8)
except MemoryError:
    print("no more")
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout == "no more\n", child.stderr


def test_what_takes_too_long_or_breaks_down_is_ended_and_too_much_memory_refused(checkpoint, clips, tmp_path):
    plain = cv2.imencode(".png", np.zeros((2000, 4000, 3), np.uint8))[1].tobytes()  # 24 MB of pixels
    large, small = tmp_path / "large", tmp_path / "small"
    (large / FILM).mkdir(parents=True)
    for number in range(8):
        (large / FILM / f"{number}.png").write_bytes(plain)
    small.mkdir()
    (small / FILM).write_bytes(clips[0].read_bytes())

    async def answers():
        def ask(folder):
            return workers.ask({"folder": str(folder), "fps": None, "events": [None] * 3})

        with contextlib.closing(Workers(checkpoint, None, Limits(100, 30, 1000, 300, 1, memory=0.15))) as workers:
            told = [await ask(large), await ask(small)]
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(ask(small), 0.01)
            workers._free[0].end()  # as a fault in a decoder does
            with pytest.raises(EOFError):
                await ask(small)
            return [*told, await ask(small)]

    refused, first, again = asyncio.run(answers())
    assert refused["upload"] and "takes more memory than the limit here" in refused["error"], refused
    assert first["result"]["label"] in ("happy", "surprise", "disgust")
    assert again == first


def test_a_checkpoint_that_cannot_be_read_is_told(checkpoint, tmp_path, capsys):
    pytest.importorskip("aiohttp", reason="hsta-kernels[serve] is not installed")
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes() if path.name == "task.json" else b"")
    assert main(["serve", "--checkpoint", str(tmp_path), "--port", "0", "--at-once", "1"]) == 2
    assert capsys.readouterr().err.startswith(f"hsta: cannot read the checkpoint {tmp_path}: ")


def test_a_missing_package_is_named(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "hsta.serving.server", raising=False)
    assert main(["serve", "--checkpoint", str(checkpoint), "--port", "0"]) == 2
    assert capsys.readouterr().err == "hsta: aiohttp is not installed: pip install hsta-kernels[serve]\n"


def test_a_port_in_use_is_told(checkpoint, server, capsys):
    assert main(["serve", "--checkpoint", str(checkpoint), "--port", str(server.port)]) == 2
    assert "in use" in capsys.readouterr().err

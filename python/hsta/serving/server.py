"""The HTTP server of ``hsta serve``: one page, and one question that it asks."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from html import escape
from importlib.resources import files
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from yarl import URL

from ..errors import UserError
from ..results.style import STYLE
from .limits import Limits
from .work import FILM, WENT_WRONG
from .workers import Workers

CHUNK = 2**16
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Server": "hsta",
}


class Refused(Exception):
    """A request that is answered by a status of HTTP and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


async def serve(
    checkpoint: Path, detector: str | None, limits: Limits, host: str, port: int, tell: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or cancellation; ``tell`` gets the address. With port 0 any free one is taken.

    Raises `UserError` when the model cannot be loaded, `OSError` when the address cannot be had.
    """
    stop = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # not on Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with (
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listening,
        tempfile.TemporaryDirectory(prefix="hsta-serve-") as folder,
        contextlib.closing(Workers(checkpoint, detector, limits)) as workers,
    ):
        app = application(workers, limits, Path(folder), host)
        # An upload that is refused is not read on: by itself aiohttp would, for ten seconds.
        runner = web.AppRunner(app, access_log=None, auto_decompress=False, lingering_time=0, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.SockSite(runner, listening).start()
            tell(str(URL.build(scheme="http", host=host, port=listening.getsockname()[1], path="/")))
            await stop.wait()
        finally:
            await runner.cleanup()


def application(workers: Workers, limits: Limits, folder: Path, host: str) -> web.Application:
    """The server's answers; uploads lie in ``folder`` while they are looked at, each in one of its own."""
    here = files(__package__)
    page = (here / "page.html").read_text(encoding="utf-8")
    for name in ("megabytes", "seconds", "frames"):
        page = page.replace(f"{{{name}}}", escape(f"{getattr(limits, name):g}"))
    texts = {
        "/": ("text/html", page),
        "/page.css": ("text/css", STYLE + (here / "page.css").read_text(encoding="utf-8")),
        "/page.js": ("text/javascript", (here / "page.js").read_text(encoding="utf-8")),
    }

    async def text(request: web.Request) -> web.Response:
        kind, body = texts[request.path]
        return web.Response(text=body, content_type=kind, charset="utf-8")

    app = web.Application(middlewares=[_guard(host)])
    app.on_response_prepare.append(_add_headers)
    app.add_routes([web.get(path, text) for path in texts])
    app.add_routes([web.post("/predict", Predictions(workers, limits, folder).predict)])
    return app


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _guard(host: str) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _check_sender(request, host)
            return await handler(request)
        except Refused as refused:
            return web.json_response({"error": str(refused)}, status=refused.status)
        except web.HTTPException:
            raise
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return web.json_response({"error": WENT_WRONG}, status=500)

    return guard


def _check_sender(request: web.Request, host: str) -> None:
    """A page of somebody else must not ask us from the browser of who runs this: neither by our address, which
    ``Origin`` tells, nor by a name of theirs that they have made point here, which ``Host`` tells."""
    asked = request.headers.get("Host", "")
    try:
        name = URL(f"http://{asked}").host or ""
    except ValueError:
        name = ""
    if not (name in ("localhost", host.lower()) or _is_address(name)):
        raise Refused(403, "this server is asked by its address, or as localhost, not by another name")
    if request.headers.get("Origin", f"http://{asked}") not in (f"http://{asked}", f"https://{asked}"):
        raise Refused(403, "this server answers its own page only, not that of another site")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Predictions:
    """What the model says of uploads, at most so many at a time."""

    def __init__(self, workers: Workers, limits: Limits, folder: Path):
        self.workers = workers
        self.limits = limits
        self.folder = folder
        self.busy = 0

    async def predict(self, request: web.Request) -> web.Response:
        """The body is a film, or pictures one after the other, whose bytes the parameter ``lengths`` counts (1,2,3).

        Parameters ``fps``, ``onset``, ``apex`` and ``offset`` are as in ``hsta predict``.
        """
        self._check_size(request.content_length or 0)
        lengths, fps = self._lengths(request), _fps(request)
        events = _events(request)
        if self.busy >= self.limits.at_once:
            raise Refused(503, f"{self.busy} uploads are being looked at, as many as may be: try again in a moment")
        self.busy += 1
        try:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                answering = self._answer(request, Path(folder), lengths, fps, events)
                answer = await asyncio.wait_for(answering, self.limits.timeout)
        except asyncio.TimeoutError:
            raise Refused(
                504, f"this took more than {self.limits.timeout:g} seconds, the limit here: try a shorter film"
            ) from None
        finally:
            self.busy -= 1
        if "error" in answer:
            raise Refused(422 if answer["upload"] else 500, answer["error"])
        return web.json_response(answer)

    async def _answer(
        self, request: web.Request, folder: Path, lengths: list[int], fps: float | None, events: list[int | None]
    ) -> dict:
        try:
            await self._receive(request, folder / FILM, lengths)
        except (asyncio.IncompleteReadError, web.RequestPayloadError, ConnectionError):
            raise Refused(400, "the upload ended before its end") from None
        try:
            return await self.workers.ask({"folder": str(folder), "fps": fps, "events": events})
        except (EOFError, UserError):
            raise Refused(500, "what looked at the film broke down: it may be damaged or too large") from None

    async def _receive(self, request: web.Request, film: Path, lengths: list[int]) -> None:
        """Write the upload to ``film``: a file, or with ``lengths`` a folder of pictures."""
        if lengths:
            film.mkdir()
            for number, length in enumerate(lengths, 1):
                (film / f"{number}.png").write_bytes(await request.content.readexactly(length))
            if await request.content.read(1):
                raise Refused(400, f"the upload is longer than its lengths, {sum(lengths):,} bytes")
            return
        received = 0
        with film.open("wb") as file:
            async for chunk in request.content.iter_chunked(CHUNK):
                received += len(chunk)
                self._check_size(received)
                file.write(chunk)
        if not received:
            raise Refused(400, "the upload is empty: a film is expected")

    def _check_size(self, size: int) -> None:
        if size > self.limits.bytes:
            raise Refused(413, f"the upload is larger than {self.limits.megabytes:g} MB, the limit here: cut the film")

    def _lengths(self, request: web.Request) -> list[int]:
        words = request.query.get("lengths")
        if words is None:
            return []
        if len(words) > 12 * self.limits.frames or words.count(",") >= self.limits.frames:
            raise Refused(413, f"these are more than {self.limits.frames} pictures, the limit here")
        lengths = [_natural(word, "lengths") for word in words.split(",")]
        self._check_size(sum(lengths))
        return lengths


def _events(request: web.Request) -> list[int | None]:
    events = [_event(request, name) for name in ("onset", "apex", "offset")]
    onset, apex, offset = events
    if (onset is None) != (offset is None) or (onset is None and apex is not None):
        raise Refused(400, "onset and offset go together, and apex with them")
    given = [event for event in events if event is not None]
    if given != sorted(given):
        raise Refused(400, f"onset, apex and offset must be in order, got {', '.join(map(str, given))}")
    return events


def _natural(word: str, name: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 12):
        raise Refused(400, f"{name} must be a whole number, 0 or more, got {word[:20]!r}")
    return int(word)


def _event(request: web.Request, name: str) -> int | None:
    word = request.query.get(name)
    return None if word is None else _natural(word, name)


def _fps(request: web.Request) -> float | None:
    word = request.query.get("fps")
    if word is None:
        return None
    with contextlib.suppress(ValueError):
        if 0 < float(word) < float("inf"):
            return float(word)
    raise Refused(400, f"fps must be a positive number, got {word[:20]!r}")

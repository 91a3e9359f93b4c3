"""A process that holds the model and looks at uploads, one after the other, for a server that trusts none."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import traceback
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .limits import TOO_LARGE, Limits

if TYPE_CHECKING:
    import hsta_kernels

    from ..training.checkpoints import Task

FILM = "film"  # the upload in a job's folder: a video file, or a folder of pictures
BESIDE = 1.0  # GiB that looking at frames takes, beside them and the model
WENT_WRONG = "something went wrong here, which is not the upload's fault"

Events = tuple[int | None, int | None, int | None]


def work(connection: Connection, checkpoint: Path, detector: str | None, limits: Limits) -> None:
    """Say that the model is loaded, or why not; then answer jobs until the server closes the connection.

    Messages are JSON, since no more is unpickled than has to be. A job is a dictionary of `_look`'s arguments, an
    answer has ``result`` and ``face``, or ``error`` and whether it is the ``upload`` that is at fault.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    try:
        from ..results.recognition import how_to_find
        from ..training.checkpoints import load_checkpoint
        from . import upload  # noqa: F401  # loaded now, so that no upload waits for it or finds no memory for it

        model, task = load_checkpoint(checkpoint)
        how_to_find(model, task, detector)
    except UserError as error:
        _send(connection, {"error": str(error)})
        return
    limit_memory(limits.memory + BESIDE)
    _send(connection, {})
    while True:
        try:
            job = json.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = _look(model, task, detector, limits, **job)
        except Exception as error:
            if isinstance(error, MemoryError) or "memory" in str(error).lower():  # of FFmpeg, OpenCV, PyTorch
                answer = {"error": TOO_LARGE, "upload": True}
            elif isinstance(error, UserError):
                answer = {"error": str(error), "upload": True}
            else:
                traceback.print_exc(file=sys.stderr)
                answer = {"error": WENT_WRONG, "upload": False}
        os.chdir("/")
        _send(connection, answer)


def _send(connection: Connection, message: dict) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _look(
    model: hsta_kernels.HSTA,
    task: Task,
    detector: str | None,
    limits: Limits,
    folder: str,
    fps: float | None,
    events: Events,
) -> dict:
    import cv2

    from ..results.recognition import recognize
    from .upload import Upload

    os.chdir(folder)  # then no message has a path
    film = Upload(Path(FILM), fps, limits)
    result, apex = recognize(model, task, film, file="the film", events=events, detector=detector)
    written, picture = cv2.imencode(".png", apex[..., ::-1])
    assert written
    return {"result": asdict(result), "face": base64.b64encode(picture.tobytes()).decode()}


def limit_memory(gib: float) -> None:
    """Let this process have so much more than it has now, where the system knows such limits."""
    status = Path("/proc/self/statm")
    if status.is_file():
        import resource

        # Of data, not of addresses, of which every thread reserves more than it uses.
        most = int(status.read_text().split()[5]) * resource.getpagesize() + int(gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

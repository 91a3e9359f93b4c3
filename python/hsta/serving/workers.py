"""The processes that look at uploads: one that takes too long is ended, and another one takes its place."""

from __future__ import annotations

import asyncio
import contextlib
import json
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from ..errors import UserError
from .limits import Limits
from .work import work


class Worker:
    """A process of `work`, and the end of the connection to it."""

    def __init__(self, checkpoint: Path, detector: str | None, limits: Limits):
        context = get_context("spawn")
        self._connection: Connection
        self._connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=work, args=(theirs, checkpoint, detector, limits), daemon=True
        )
        self._process.start()
        theirs.close()
        self._ready = False

    def wait(self) -> None:
        """Until the model is loaded. Raises `UserError` when it cannot be."""
        if not self._ready:
            said = json.loads(self._connection.recv_bytes())
            if "error" in said:
                raise UserError(said["error"])
            self._ready = True

    def ask(self, job: dict) -> dict:
        """The answer to a job of `work`. Raises `EOFError` when the process ends before."""
        try:
            self.wait()
            self._connection.send_bytes(json.dumps(job).encode())
            return json.loads(self._connection.recv_bytes())
        except OSError as error:
            raise EOFError from error

    def end(self) -> None:
        """At once, whatever it does."""
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """After `end`, when nobody waits for an answer any more."""
        self._connection.close()


class Workers:
    """As many as uploads are looked at at a time. Raises `UserError` when the model cannot be loaded."""

    def __init__(self, checkpoint: Path, detector: str | None, limits: Limits):
        self._arguments = checkpoint, detector, limits
        self._free = [Worker(*self._arguments) for _ in range(limits.at_once)]
        try:
            for worker in self._free:
                worker.wait()
        except UserError:
            self.close()
            raise
        except EOFError:
            self.close()
            raise UserError("a process died while it loaded the model: is there enough memory?") from None

    async def ask(self, job: dict) -> dict:
        """As `Worker.ask`; where this is cancelled, the worker is ended. There has to be a free one."""
        worker = self._free.pop()
        waiting = asyncio.ensure_future(asyncio.to_thread(worker.ask, job))
        try:
            answer = await asyncio.shield(waiting)
        except BaseException:
            worker.end()
            with contextlib.suppress(EOFError, UserError):
                await waiting
            worker.close()
            self._free.append(Worker(*self._arguments))
            raise
        self._free.append(worker)
        return answer

    def close(self) -> None:
        for worker in self._free:
            worker.end()
            worker.close()

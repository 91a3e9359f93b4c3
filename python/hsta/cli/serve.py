"""``hsta serve``: predictions in a browser."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..errors import UserError
from ..training.checkpoint_folder import checkpoint_folder

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass
class Serve:
    """Serve a page that shows, of a film dropped on it, what `hsta predict` tells; onset, apex and offset can be moved.

    Nothing is kept of a film. There is no password: with another --host than this machine's own, whoever reaches it
    may ask.
    """

    checkpoint: Path
    """Folder that `hsta train` wrote, with the model to use."""
    host: str = "127.0.0.1"
    """Address to listen at; the default is reached from this machine only, 0.0.0.0 from everywhere."""
    port: int = 8470
    """Port to listen at; 0 takes any that is free."""
    detector: Annotated[Literal["mtcnn", "cascade"] | None, tyro.conf.arg(metavar="{mtcnn,cascade}")] = None
    """What finds faces, as in `hsta predict`."""
    megabytes: float = 100.0
    """Largest upload, in millions of bytes."""
    seconds: float = 30.0
    """Longest film."""
    frames: int = 1000
    """Most frames of a film."""
    timeout: float = 120.0
    """Seconds that an upload may take, from its first byte to the answer."""
    at_once: int = 2
    """Uploads that are received and looked at at a time; each has a process with the model."""
    memory: float = 4.0
    """GiB that the decoded frames of an upload may take."""

    def run(self) -> None:
        self._check()

        from ..serving.limits import Limits
        from ..serving.server import serve

        limits = Limits(self.megabytes, self.seconds, self.frames, self.timeout, self.at_once, self.memory)
        if self.host not in LOOPBACK:
            print(f"note: whoever reaches {self.host} may ask: there is no password", file=sys.stderr)
        asyncio.run(serve(self.checkpoint, self.detector, limits, self.host, self.port, _tell))

    def _check(self) -> None:
        """Complaints come before libraries are loaded."""
        for name in ("megabytes", "seconds", "timeout", "memory"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise UserError(f"{name} must be a positive number, got {value:g}")
        for name, least in (("frames", 2), ("at_once", 1)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"{name} must be {least} or more, got {value}")
        if not 0 <= self.port < 2**16:
            raise UserError(f"port must be from 0 to 65535, got {self.port}")
        checkpoint_folder(self.checkpoint)


def _tell(address: str) -> None:
    print(f"{address} shows predictions of films dropped there; Ctrl-C stops", flush=True)

"""`hsta serve` as a program of its own, with a tiny model that nobody trained."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import torch
from hsta.data.video import write_video
from hsta.generated.clips import generate_clip, subject_portrait
from hsta.training.checkpoints import Task, save_checkpoint

import hsta_kernels

LIMITS = "--megabytes 2 --seconds 5 --frames 100 --timeout 300 --at-once 2"


@dataclass
class Server:
    process: subprocess.Popen
    port: int
    temporary: Path
    """Where it puts uploads."""

    def get(self, path: str):
        """Status, headers and text."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=300)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()

    def predict(self, body: bytes, query: str = "", **headers: str):
        """Status and the answer's JSON."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=300)
        with contextlib.closing(connection):
            connection.request("POST", f"/predict?{query}", body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def kept(self) -> list[Path]:
        """What lies in its temporary folders."""
        return [path for folder in self.temporary.glob("hsta-serve-*") for path in folder.iterdir()]


@contextlib.contextmanager
def serving(checkpoint: Path, temporary: Path, options: str = LIMITS):
    temporary.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "hsta", "serve", "--checkpoint", str(checkpoint), "--port", "0"]
    process = subprocess.Popen(
        [*command, *options.split()],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    with process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[0]
            yield Server(process, int(address.rstrip("/").rpartition(":")[2]), temporary)
        finally:
            process.terminate()


def untrained(folder: Path) -> Path:
    torch.manual_seed(0)
    model = hsta_kernels.create_model("hsta_tiny_224", image_size=32, num_frames=4, depth=((1, 1),), num_classes=3)
    save_checkpoint(folder, model, Task("casme3", ("happy", "surprise", "disgust"), "frames", True))
    return folder


def somebody(seed: int) -> list[np.ndarray]:
    """Frames of a face in a larger scene."""
    clip = generate_clip(subject_portrait(0, 7), "happy", np.random.default_rng(seed), image_size=160, margin=0.5)
    return [np.pad(frame, ((40, 40), (80, 80), (0, 0)), constant_values=120) for frame in clip.frames]


def filmed(path: Path, frames: list[np.ndarray]) -> Path:
    write_video(path, frames, 30.0)
    return path

"""Prepares a data set: every clip's face found, aligned, cropped and kept where training reads it fast."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from ..errors import UserError
from ..face.align import align_clip
from ..face.detectors import DETECTORS, Detector
from ..files import replacing, write_text
from .cache import (
    CLASSES,
    DEFAULT,
    Plan,
    Source,
    described,
    frames_file,
    key,
    read_cache,
    read_plan,
    stamp,
    stamp_tables,
    write_plan,
)
from .clips import DatasetIndex
from .frame_files import FrameFiles
from .output_folder import alone_in, check_output, copy_folds, open_output
from .prepared_frames import PreparedFrames, checksum

Task = TypeVar("Task")
Result = TypeVar("Result")
Prepared = tuple[int, "np.ndarray | str"]  # a clip's number, and its frames or why there are none


def prepare_dataset(
    dataset: Source,
    source: Path,
    output: Path,
    *,
    size: int = 224,
    detector: str = "mtcnn",
    workers: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> DatasetIndex:
    """Prepare the ``dataset`` in the folder ``source`` into the folder ``output``; returns what is there now.

    Frames are uint8 RGB of ``size`` × ``size`` pixels. ``workers`` processes do the work, with 0 this one. Stopped at
    any moment, the same call goes on and ends with the same bits; what is complete stays as it is. Raises `UserError`,
    naming the folder, when ``output`` holds something else or other data or settings (``overwrite`` begins anew), when
    another call is at work in it, and when no clip has a face.
    """
    if read_plan(source) is not None:
        raise UserError(f"{source} is prepared already")
    check_output(output)
    indices, clips = _survey(dataset, source)
    plan = Plan(
        dataset.name,
        {"size": size, "detector": detector, "version": DETECTORS[detector]().version()},
        stamp_tables(source),
        {name: stamp(frames, source) for name, frames in clips.items()},
    )
    with alone_in(output, "hsta prepare"):
        open_output(output, source, plan, overwrite)
        copy_folds(source, output)

        missing = [(number, frames) for number, frames in enumerate(clips.values()) if not _is_done(output, number)]
        done = len(clips) - len(missing)
        bar = tqdm(desc="prepare", total=len(clips), initial=done, unit="clip", disable=not progress)
        with bar:
            for number, frames in in_parallel(partial(_prepare_clip, detector=detector, size=size), missing, workers):
                # Written by this process alone: others may outlive it for a moment when it is killed.
                if isinstance(frames, str):
                    write_text(_left_out_file(output, number), frames)
                else:
                    with replacing(frames_file(output, number)) as temporary, temporary.open("wb") as file:
                        np.save(file, frames)
                bar.update()
        files = [_result(output, number, frames[0].parent, source) for number, frames in enumerate(clips.values())]
        if all("left_out" in file for file in files):
            raise UserError(f"no clip in {source} could be prepared: {files[0]['left_out']}, and so on")
        write_plan(output, source.resolve(), plan, {"indices": indices, "files": files})
        choice = next(classes for classes in CLASSES if "error" not in indices[classes])
        index = read_cache(dataset, output, None if choice == DEFAULT else choice)
        assert index is not None
        return index


def in_parallel(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """The results of ``function`` in any order, by ``workers`` processes; with 0 by this one, in order.

    No more tasks are under way than keep the processes busy. Raises `UserError` when one of them dies.
    """
    if not workers:
        yield from map(function, tasks)
        return
    # Not forked: threads of libraries do not survive that.
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker) as pool:
        waiting = iter(tasks)
        running: set[Future[Result]] = set()
        while True:
            running |= {pool.submit(function, task) for task in islice(waiting, 2 * workers - len(running))}
            if not running:
                return
            try:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from [future.result() for future in done]
            except BrokenProcessPool as error:
                raise UserError("a process that prepares clips died; if memory ran out, try --workers 1") from error


def _begin_worker() -> None:
    """A process of `in_parallel` uses one processor, leaves Ctrl-C to its parent, and ends when that ends."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _prepare_clip(task: tuple[int, tuple[Path, ...]], *, detector: str, size: int) -> Prepared:
    number, paths = task
    try:
        frames = align_clip(FrameFiles(paths), _detector(detector), size)
    except UserError as error:
        return number, str(error)
    return number, f"no face in its {len(paths)} frames" if frames is None else frames


@cache
def _detector(name: str) -> Detector:
    return DETECTORS[name]()


def _survey(dataset: Source, source: Path) -> tuple[dict[str, dict], dict[str, tuple[Path, ...]]]:
    """The indices by each choice of classes, as `described`, or why there is none; and all their clips' frames."""
    read = {}
    refused: dict[str, dict] = {}
    for classes in CLASSES:
        try:
            read[classes] = dataset.read(source, None if classes == DEFAULT else classes)
        except UserError as error:
            refused[classes] = {"error": str(error)}
    if not read:
        raise UserError(refused[DEFAULT]["error"])
    clips: dict[str, tuple[Path, ...]] = {}
    for index in read.values():
        for clip in index.clips:
            if clips.setdefault(key(clip), clip.files) != clip.files:
                raise UserError(f"two clips have the name {key(clip)}, with other frames; each needs its own")
    return {classes: described(index) for classes, index in read.items()} | refused, clips


def _left_out_file(output: Path, number: int) -> Path:
    return frames_file(output, number).with_suffix(".txt")


def _is_done(output: Path, number: int) -> bool:
    return frames_file(output, number).is_file() or _left_out_file(output, number).is_file()


def _result(output: Path, number: int, folder: Path, source: Path) -> dict:
    reason = _left_out_file(output, number)
    if reason.is_file():
        return {"left_out": reason.read_text(encoding="utf-8"), "folder": str(folder.relative_to(source))}
    path = frames_file(output, number)
    frames = PreparedFrames(path, 0, "", f"clip {number}").open()
    return {"length": len(frames), "checksum": checksum(frames)}

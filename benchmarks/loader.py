"""Clips a second that training is given: the loader alone, no model.

    python -m benchmarks.loader                                # prepared clips of 224 pixels, 6 and 16 frames
    python -m benchmarks.loader --clips 7526 --epochs 1        # as many as DFME has, with the peak of memory
    python -m benchmarks.loader --shards 4                     # the same out of tar files, which do take room

The clips are files as `hsta prepare` leaves them, of black frames that take no room on the disk: what they show does
not matter for the time, a disk that has to be read would. They are loaded, augmented and put into batches as `hsta
train` does it, in the same processes. ``ready`` are clips that are also on the device, normalized, and changed by
``--augment``; on a CPU this takes the threads that the model would compute with, and on a GPU copies run beside it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from hsta.data.clips import Clip
from hsta.data.inputs import ClipDataset, model_inputs
from hsta.data.prepared_frames import PreparedFrames, checksum
from hsta.data.shards import Sample, read_offsets, write_shard
from hsta.data.transforms import SPECIAL
from hsta.training.augmentation import augment, draw_changes
from hsta.training.clip_order import BalancedSampler
from hsta.training.loop import training_loader

from benchmarks.memory import resident
from hsta_kernels.processor import processor_name

SIDE = 224
LENGTH = 30  # frames of a clip, and the middle one is its apex


@dataclass(frozen=True)
class Rate:
    """Clips a second, and the largest resident set of this process in bytes.

    ``a_processor`` are the clips loaded in a second of this process's processor time, whatever else runs; None where
    other processes load.
    """

    num_frames: int
    workers: int
    loaded: float
    ready: float
    a_processor: float | None
    memory: int


def prepared_clips(folder: Path, clips: int, length: int = LENGTH, side: int = SIDE) -> list[Clip]:
    """Clips of files that are holes, as long as those of `hsta prepare`."""
    made = []
    for number in range(clips):
        path = folder / f"{number:05}.npy"
        np.lib.format.open_memmap(path, "w+", np.uint8, (length, side, side, 3))
        frames = PreparedFrames(path, length, "", f"clip {number}")
        made.append(Clip("dfme", str(number), str(number), frames, length // 2, "", 0))
    return made


def sharded_clips(folder: Path, clips: list[Clip], shards: int) -> list[Clip]:
    """`prepared_clips` as `hsta shard` leaves them."""
    made = []
    for shard in range(shards):
        path = folder / f"{shard:05}.tar"
        mine = clips[shard * len(clips) // shards : (shard + 1) * len(clips) // shards]
        frames = [clip.frames for clip in mine if isinstance(clip.frames, PreparedFrames)]
        black = checksum(frames[0].open())
        frames = [replace(of, checksum=black) for of in frames]
        write_shard(path, (Sample(of.path.stem, of, b"{}") for of in frames))
        offsets = read_offsets(path)
        for clip, of in zip(mine, frames, strict=True):
            made.append(replace(clip, frames=replace(of, path=path, offset=offsets[of.path.name])))
    return made


def measured(clips: list[Clip], num_frames: int, workers: int, options: argparse.Namespace, side: int = SIDE) -> Rate:
    device = torch.device(options.device)
    dataset = ClipDataset(clips, image_size=side, num_frames=num_frames, special=options.special, training=True)
    sampler = BalancedSampler([0] * len(clips), seed=0)
    loader = training_loader(dataset, sampler, min(options.batch_size, len(clips)), workers=workers, device=device)

    def epochs(ready: bool) -> Iterator[int]:
        """The number of clips of each batch."""
        for epoch in range(options.epochs):
            dataset.set_epoch(epoch)
            sampler.epoch = epoch
            for batch in loader:
                if ready:
                    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
                    video, special = model_inputs(batch)
                    if options.augment:
                        changes = draw_changes(len(video), options.augment)
                        augment(video, special, changes, flow=SPECIAL[options.special] is not None)
                yield len(batch["index"])

    for _ in loader:  # starts the processes, and fills the system's cache of files
        pass
    rates, processor = [], []
    for ready in (False, True):
        start, busy = time.perf_counter(), time.process_time()
        clips_seen = sum(epochs(ready))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rates.append(clips_seen / (time.perf_counter() - start))
        processor.append(clips_seen / (time.process_time() - busy))
    return Rate(num_frames, workers, *rates, None if workers else processor[0], memory=resident("VmHWM"))


def main(arguments: list[str] | None = None) -> list[Rate]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[6, 16], help="of the video, that the model sees")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="loading processes")
    parser.add_argument("--special", choices=SPECIAL, default="frames")
    parser.add_argument("--augment", type=float, default=0.5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--shards", type=int, default=0, help="tar files that hold the clips; 0 for a file a clip")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=SIDE, help="side of the frames in pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    rates = []
    print(
        f"{processor_name()}, {os.cpu_count()} processors; special {options.special}; {options.clips} clips of {LENGTH}"
        f" in {options.shards or options.clips} files"
    )
    with tempfile.TemporaryDirectory() as folder:
        clips = prepared_clips(Path(folder), options.clips, side=options.size)
        if options.shards:
            clips = sharded_clips(Path(folder), clips, options.shards)
        for num_frames in options.frames:
            for workers in options.workers:
                rate = measured(clips, num_frames, workers, options, options.size)
                alone = "" if rate.a_processor is None else f" ({rate.a_processor:.0f} a second of processor time)"
                print(
                    f"T = {num_frames:2}, {workers} loading processes: {rate.loaded:5.0f} clips/s{alone}, ready on "
                    f"{options.device} {rate.ready:5.0f}, at most {rate.memory / 2**20:.0f} MiB resident",
                    flush=True,
                )
                rates.append(rate)
    return rates


if __name__ == "__main__":
    main()

"""What is prepared, in a few tar files: the file systems of clusters are slow with a file a clip.

The tar files are WebDataset's: ``KEY.npy`` has the frames of a clip, and ``KEY.json`` beside it what it is. Nothing is
compressed, and `cache.FILE` says in which shard a clip lies and from which byte on, so that it is mapped as from a file
of its own, in whatever order.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from ..errors import UserError
from ..files import replacing
from .cache import clip_of, frames_file, key, read_plan, shard_file, write_plan
from .output_folder import alone_in, check_output, copy_folds, open_output
from .prepared_frames import PreparedFrames


@dataclass(frozen=True)
class Sample:
    """What a shard holds of a clip: two files, named by ``key``."""

    key: str
    frames: PreparedFrames
    described: bytes


def shard_prepared(
    source: Path, output: Path, shards: int, *, overwrite: bool = False, progress: bool = True
) -> list[Path]:
    """Put what `hsta prepare` left in the folder ``source`` into ``shards`` tar files in the folder ``output``, which
    is read like ``source``, clip by clip the same bits in the same order. Returns the tar files.

    Each has as many clips, but for one, and neighbours stay together. Stopped at any moment, the same call goes on and
    ends with the same bytes; shards that are there are read, and damaged ones written anew. Raises `UserError`, naming
    the folder, when ``source`` holds nothing complete or is in shards already, when ``output`` holds something else or
    other data or settings (``overwrite`` begins anew), and when another call is at work in it; naming the file, when a
    clip is missing or damaged.
    """
    found = read_plan(source)
    if found is None:
        raise UserError(f"{source} holds nothing prepared: hsta prepare comes first")
    original, plan, results = found
    if plan.shards:
        raise UserError(f"{source} is in shards: give the folder that hsta prepare left")
    if results is None:
        raise UserError(f"{source} is not complete: the same hsta prepare again goes on with it")
    if source.resolve() == output.resolve():
        raise UserError(f"{output} holds what is to be put into shards; choose another folder")
    files = results["files"]
    there = [number for number, file in enumerate(files) if "left_out" not in file]
    if not 1 <= shards <= len(there):
        raise UserError(f"shards must be from 1 to the number of clips, {len(there)}, got {shards}")
    check_output(output)
    described = _descriptions(results["indices"])
    names = list(plan.clips)

    def sample(number: int) -> Sample:
        said = described[names[number]]
        clip = f"{said['subject']} {said['name']}"
        file = files[number]
        frames = PreparedFrames(frames_file(source, number), file["length"], file["checksum"], clip)
        return Sample(f"{number:05}", frames, json.dumps(said, ensure_ascii=False).encode())

    plan = replace(plan, shards=shards)
    with alone_in(output, "hsta shard"):
        open_output(output, original, plan, overwrite)
        copy_folds(source, output)
        written, sharded = [], list(files)
        with tqdm(desc="shard", total=len(there), unit="clip", disable=not progress) as bar:
            for shard in range(shards):
                path = shard_file(output, shard)
                numbers = there[shard * len(there) // shards : (shard + 1) * len(there) // shards]
                samples = list(map(sample, numbers))
                if not _holds(path, samples):
                    write_shard(path, samples)
                offsets = read_offsets(path)
                for number in numbers:
                    sharded[number] = files[number] | {"shard": shard, "offset": offsets[f"{number:05}.npy"]}
                written.append(path)
                bar.update(len(numbers))
        write_plan(output, original, plan, results | {"files": sharded})
    return written


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    """A tar file of these clips, the same bytes each time. Raises `UserError`, naming the file, for a damaged one."""
    with replacing(path) as temporary, tarfile.open(temporary, "w") as tar:
        for sample in samples:
            sample.frames.check()
            for ending, content in (("npy", sample.frames.path.read_bytes()), ("json", sample.described)):
                member = tarfile.TarInfo(f"{sample.key}.{ending}")  # of no owner and no time
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def read_offsets(path: Path) -> dict[str, int]:
    """Where the bytes of each file in a tar file begin, by its name."""
    with tarfile.open(path, "r:") as tar:
        return {member.name: member.offset_data for member in tar}


def _holds(path: Path, samples: list[Sample]) -> bool:
    """Whether a shard is there with these clips and nothing else, bit for bit; reads all of it."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = {member.name: member for member in tar}
            if list(members) != [f"{sample.key}.{ending}" for sample in samples for ending in ("npy", "json")]:
                return False
            for sample in samples:
                replace(sample.frames, path=path, offset=members[f"{sample.key}.npy"].offset_data).check()
                described = tar.extractfile(members[f"{sample.key}.json"])
                if described is None or described.read() != sample.described:
                    return False
    except (OSError, tarfile.TarError, UserError):
        return False
    return True


def _descriptions(indices: Mapping[str, dict]) -> dict[str, dict]:
    """What is known of each clip by its `key`: its class by each choice of classes, by name, is under ``classes``."""
    described: dict[str, dict] = {}
    for classes, said in indices.items():
        for fields in said.get("clips", ()):
            clip, names = clip_of(fields), said["class_names"]
            known = {"dataset": clip.dataset, "subject": clip.subject, "name": clip.name, "apex": clip.apex}
            shown = names[clip.label] if isinstance(clip.label, int) else [names[label] for label in clip.label]
            described.setdefault(key(clip), known | {"classes": {}})["classes"][classes] = shown
    return described

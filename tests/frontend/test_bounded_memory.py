"""A prepared data set is larger than the memory that a process may have, and every clip of it is loaded."""

import subprocess
import sys

import pytest

LIMITED = """
import resource, sys
from pathlib import Path
from hsta.data.inputs import ClipDataset
from benchmarks.loader import prepared_clips
from benchmarks.memory import resident

folder, clips, megabytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
dataset = ClipDataset(prepared_clips(folder, clips), image_size=224, num_frames=6, training=True)
dataset[0]  # what the libraries take once
limit = resident("VmSize") + megabytes * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for index in range(clips):
    dataset[index]
print("one after the other", flush=True)
kept = []
try:
    for index in range(clips):
        dataset[index]
        kept.append(dataset.clips[index].frames.open())
except (MemoryError, OSError):
    kept.clear()
    print("not all at once")
"""
CLIPS, MEGABYTES = 60, 64  # 258 MiB of frames


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory that a process maps")
def test_clips_of_four_times_the_memory_are_loaded_one_after_the_other(tmp_path):
    """Where the clips are kept open, the same limit is met."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(CLIPS), str(MEGABYTES)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines() == ["one after the other", "not all at once"]

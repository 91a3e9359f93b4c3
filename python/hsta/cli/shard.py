"""``hsta shard``: what is prepared in a few large files, for the file systems of clusters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError


@dataclass(frozen=True)
class Shard:
    """Put what `hsta prepare` left into a few tar files; train, evaluate and check read them like the folder itself.

    The clips, their order and their bits stay the same, and so does what a training makes of them. The tar files are
    WebDataset's. Stopped at any moment, the same command goes on, and a damaged shard is written anew by it.
    """

    data: Path
    """Folder that `hsta prepare` left."""
    output: Path
    """Folder of the shards; it takes as many bytes as what is prepared."""
    shards: int
    """Number of shards; of a GB each, they are copied fast and none is in the way of others."""
    overwrite: bool = False
    """Delete what the folder holds prepared and begin again."""

    def run(self) -> None:
        if not self.data.is_dir():
            raise UserError(f"no such folder: {self.data}")

        from ..data.shards import shard_prepared

        written = shard_prepared(self.data, self.output, self.shards, overwrite=self.overwrite)
        size = sum(path.stat().st_size for path in written) / 1e6
        print(f"{len(written)} shards, {size:.1f} MB in all: {self.output}")

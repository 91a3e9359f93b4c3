"""Clips as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from ..face.spotting import Motion
from .clips import Clip
from .frame_files import FrameFiles
from .prepared_frames import PreparedFrames
from .sampling import choose_frames
from .transforms import SPECIAL, Augmentation, check_special, flow_image, normalize, prepare


class Frames(Protocol):
    """RGB frames in order, uint8 (H, W, 3): a list, an array (N, H, W, 3), or files that are read when looked up."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[np.ndarray]: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


def make_inputs(
    frames: Frames,
    apex: int | None,
    *,
    image_size: int,
    num_frames: int,
    special: str = "frames",
    rng: np.random.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's inputs for one clip: video float32 (3, num_frames, H, W) and special float32 (3, 2, H, W).

    ``frames`` are uint8 (H, W, 3) RGB from onset to offset; only those used are looked up, each once.
    ``special`` (`SPECIAL`) is the onset and apex frames, those of apex and offset, or flow images of onset → apex and
    apex → offset (u, v, strain).
    Without an ``apex`` the frame of largest motion from the onset is taken. With ``rng`` frames are drawn and
    augmented as in training; without, the result is the same each time. Raises ValueError for no frames, an
    apex out of range, an unknown ``special``.
    """
    if not len(frames):
        raise ValueError("frames must hold at least one frame, got none")
    check_special(special)
    if apex is None:
        frames = list(frames)  # all are looked up now, and some again below
        apex = int(np.argmax(Motion(frames).since()))
    elif not 0 <= apex < len(frames):
        raise ValueError(f"apex must index the {len(frames)} frames, got {apex}")
    augmentation = Augmentation() if rng is None else Augmentation.draw(rng)
    chosen = choose_frames(len(frames), num_frames, rng)
    keys = sorted({*chosen.tolist(), 0, apex, len(frames) - 1})
    ready = dict(zip(keys, prepare([frames[i] for i in keys], image_size, augmentation), strict=True))

    video = normalize(np.stack([ready[i] for i in chosen.tolist()]))
    onset, middle, offset = ready[0], ready[apex], ready[len(frames) - 1]
    method = SPECIAL[special]
    if method is None:
        pair = normalize(np.stack([onset, middle] if special == "frames" else [middle, offset]))
    else:
        images = np.stack([flow_image(onset, middle, method), flow_image(middle, offset, method)])
        pair = np.ascontiguousarray(images.transpose(3, 0, 1, 2))
    return torch.from_numpy(video), torch.from_numpy(pair)


def frames_of(clip: Clip) -> Frames:
    """From onset to offset, read when they are looked up."""
    return clip.frames.open() if isinstance(clip.frames, PreparedFrames) else FrameFiles(clip.frames)


class ClipDataset(Dataset):
    """Clips as dictionaries: video (3, T, H, W) and special (3, 2, H, W) float32, index int64.

    In training every choice comes from ``[seed, epoch, index]`` (`set_epoch`), so that a run that was stopped
    goes on bit for bit and the number of loading processes does not matter; otherwise an item is the same
    each time.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        *,
        image_size: int,
        num_frames: int,
        special: str = "frames",
        training: bool,
        seed: int = 0,
    ):
        self.clips = list(clips)
        self.image_size = image_size
        self.num_frames = num_frames
        self.special = special
        self.training = training
        self.seed = seed
        # Shared memory, so that loading processes which outlive an epoch hear of the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose random choices the next items show."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        index = range(len(self.clips))[index]
        clip = self.clips[index]
        rng = np.random.default_rng([self.seed, int(self._epoch), index]) if self.training else None
        video, special = make_inputs(
            frames_of(clip),
            clip.apex,
            image_size=self.image_size,
            num_frames=self.num_frames,
            special=self.special,
            rng=rng,
        )
        return {
            "video": video,
            "special": special,
            "index": torch.tensor(index),
        }

"""Clips as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from ..face.spotting import Motion
from .clips import Clip
from .frame_files import FrameFiles
from .prepared_frames import PreparedFrames
from .sampling import choose_frames
from .transforms import SPECIAL, Augmentation, brighten, check_special, cut, flow_image, normalize


class Frames(Protocol):
    """RGB frames in order, uint8 (H, W, 3): a list, an array (N, H, W, 3), or files that are read when looked up."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[np.ndarray]: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


def take_pixels(
    frames: Frames,
    apex: int | None,
    *,
    image_size: int,
    num_frames: int,
    special: str = "frames",
    rng: np.random.Generator | None = None,
) -> dict[str, torch.Tensor]:
    """What `make_inputs` makes its tensors of, for one clip, with the same arguments: a quarter of their bytes.

    ``video`` uint8 (num_frames, H, W, 3), ``special`` uint8 (2, H, W, 3), or float32 (3, 2, H, W) where it is flow, and
    ``light`` float32 (2,), gain and bias of the brightness. `model_inputs` does the rest, of a batch on its device.
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
    onset, offset = 0, len(frames) - 1
    keys = sorted({*chosen.tolist(), onset, apex, offset})
    ready = cut([frames[i] for i in keys], image_size, augmentation)
    light = torch.tensor([augmentation.gain, augmentation.bias])
    method = SPECIAL[special]
    if method is None:
        ends = (onset, apex) if special == "frames" else (apex, offset)
        pair = ready[np.searchsorted(keys, ends)]
    else:
        three = torch.from_numpy(ready[np.searchsorted(keys, (onset, apex, offset))])
        before, middle, after = brighten(three[None], light[None])[0].numpy()
        images = np.stack([flow_image(before, middle, method), flow_image(middle, after, method)])
        pair = np.ascontiguousarray(images.transpose(3, 0, 1, 2))
    video = ready[np.searchsorted(keys, chosen)]
    return {"video": torch.from_numpy(video), "special": torch.from_numpy(pair), "light": light}


def model_inputs(batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Video float32 (B, 3, T, H, W) and special frames float32 (B, 3, 2, H, W) of a batch of `take_pixels`, normalized
    where the batch is."""
    special, light = batch["special"], batch["light"]
    return normalize(batch["video"], light), special if special.is_floating_point() else normalize(special, light)


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
    pixels = take_pixels(frames, apex, image_size=image_size, num_frames=num_frames, special=special, rng=rng)
    video, pair = model_inputs({name: tensor[None] for name, tensor in pixels.items()})
    return video[0], pair[0]


def frames_of(clip: Clip) -> Frames:
    """From onset to offset, read when they are looked up."""
    return clip.frames.open() if isinstance(clip.frames, PreparedFrames) else FrameFiles(clip.frames)


class ClipDataset(Dataset):
    """Clips as dictionaries: those of `take_pixels`, for `model_inputs`, and index int64.

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
        pixels = take_pixels(
            frames_of(clip),
            clip.apex,
            image_size=self.image_size,
            num_frames=self.num_frames,
            special=self.special,
            rng=rng,
        )
        return {**pixels, "index": torch.tensor(index)}

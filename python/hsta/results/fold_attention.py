"""Where the model of a fold looks in some of the clips that it is tested on, kept since the model is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

import hsta_kernels
from hsta_kernels import tensor_files

from ..data.clips import Clip
from ..data.inputs import model_inputs
from ..data.sampling import choose_frames
from ..files import replacing
from ..training.checkpoints import Task
from ..training.loop import clip_dataset
from .examples import most_certain
from .tested_clips import Prediction


@torch.no_grad()
def keep_attention(
    path: Path, model: hsta_kernels.HSTA, clips: Sequence[Clip], predictions: Sequence[Prediction], task: Task
) -> None:
    """Write that of the fold's `most_certain` predictions, which are of ``clips``."""
    config, clip_of = model.config, dict(zip(predictions, clips, strict=True))
    kept = list(dict.fromkeys(most_certain(predictions).values()))
    chosen = [clip_of[prediction] for prediction in kept]
    device = next(model.parameters()).device
    maps, told = [], []
    dataset = clip_dataset(chosen, config, task, training=False)
    for place, (prediction, clip) in enumerate(zip(kept, chosen, strict=True)):
        batch = {name: tensor[None].to(device) for name, tensor in dataset[place].items()}
        maps.append(hsta_kernels.cls_attention(model, *model_inputs(batch))["video"][0].mean(dim=0))
        seen = choose_frames(len(clip.frames), config.num_frames).reshape(-1, config.tubelet_size)
        told.append({**vars(prediction), "apex": clip.apex, "moments": seen.tolist()})
    patch = config.patch_size[1] / config.image_size
    if kept:  # of action units maybe none was told
        with replacing(path) as temporary:
            metadata = {"clips": json.dumps(told), "patch": repr(patch)}
            tensor_files.save(temporary, {"video": torch.stack(maps).float().cpu()}, metadata)

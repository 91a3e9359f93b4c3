"""One training, from new weights or from where it stopped, to the last epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import hsta_kernels

from ..data.clips import Clip
from ..data.inputs import ClipDataset
from ..errors import UserError
from .checkpoint_folder import CHECKPOINT
from .checkpoints import STATE_FILE, Task, load_state, save_checkpoint, save_state
from .clip_order import BalancedSampler
from .recipe import BETAS, Recipe, parameter_groups

LOG = "log"


def fit(
    config: hsta_kernels.HSTAConfig,
    task: Task,
    clips: Sequence[Clip],
    recipe: Recipe,
    *,
    fabric: Fabric,
    directory: Path,
    seed: int = 0,
    workers: int = 0,
    title: str = "train",
) -> hsta_kernels.HSTA:
    """Train on ``clips`` and return the model of the last epoch, in evaluation mode on the fabric's device.

    After each epoch ``directory`` holds the state of the training and a checkpoint; when it holds a state
    from before, training goes on from there. Weights, order of the clips, augmentation and dropout are
    functions of ``seed`` and epoch, so that on the CPU a training that was stopped ends with the same bits as
    one that was not (other than with ``16-mixed``, whose loss scale begins anew). Raises `UserError` when the
    loss is no longer a number.
    """
    seed_everything(seed, 0)
    model = hsta_kernels.HSTA(config)
    groups = parameter_groups(model, recipe)
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=BETAS)
    wrapped, optimizer = fabric.setup(model, adamw)
    state = directory / STATE_FILE
    done = load_state(state, model, adamw) if state.is_file() else 0

    dataset = clip_dataset(clips, config, task, training=True, seed=seed)
    sampler = BalancedSampler([clip.label for clip in clips], seed, fabric.global_rank, fabric.world_size)
    loader = fabric.setup_dataloaders(
        DataLoader(
            dataset,
            min(recipe.batch_size, len(sampler)),
            sampler=sampler,
            num_workers=workers,
            # Else a new iterator over the clips would draw from the stream that dropout draws from.
            generator=torch.Generator(),
            persistent_workers=workers > 0,
            drop_last=True,
        ),
        use_distributed_sampler=False,
    )
    steps = len(loader)
    batch_size = loader.batch_size * fabric.world_size
    log = SummaryWriter(directory / LOG) if fabric.is_global_zero else None
    bar = tqdm(
        desc=title,
        total=recipe.epochs * steps,
        initial=done * steps,
        unit="step",
        disable=not fabric.is_global_zero,
    )
    with bar:
        for epoch in range(done, recipe.epochs):
            bar.set_description(f"{title} epoch {epoch + 1}/{recipe.epochs}")
            seed_everything(seed, epoch + 1, fabric.global_rank)
            dataset.set_epoch(epoch)
            sampler.epoch = epoch
            wrapped.train()
            losses = []
            for step, batch in enumerate(loader):
                rate = recipe.learning_rate_at(epoch + (step + 0.5) / steps, batch_size)
                for group in adamw.param_groups:
                    group["lr"] = rate * group["scale"]
                loss = F.cross_entropy(wrapped(batch["video"], batch["special"]), batch["label"])
                optimizer.zero_grad()
                fabric.backward(loss)
                optimizer.step()
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise UserError(
                        f"the loss is {losses[-1]} in epoch {epoch + 1}: try a lower learning rate than "
                        f"{recipe.learning_rate:g}; {directory} holds what the epochs before gave"
                    )
                bar.set_postfix(loss=f"{losses[-1]:.3f}", lr=f"{rate:.1e}", refresh=False)
                bar.update()
            if log:
                log.add_scalar("loss", np.mean(losses), (epoch + 1) * steps)
                log.add_scalar("learning rate", rate, (epoch + 1) * steps)
                log.flush()
                save_checkpoint(directory / CHECKPOINT, model, task)
                save_state(state, model, adamw, epoch + 1)
            fabric.barrier()
    if log:
        log.close()
    return model.eval()


def clip_dataset(
    clips: Sequence[Clip],
    config: hsta_kernels.HSTAConfig,
    task: Task,
    *,
    training: bool,
    seed: int = 0,
) -> ClipDataset:
    """The clips as the model of ``config`` takes them."""
    return ClipDataset(
        clips,
        image_size=config.image_size,
        num_frames=config.num_frames,
        special=task.special,
        training=training,
        seed=seed,
    )


def seed_everything(*stream: int) -> None:
    """Begin torch's stream of random numbers that these integers name, on every device."""
    torch.manual_seed(int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0] >> np.uint64(1)))

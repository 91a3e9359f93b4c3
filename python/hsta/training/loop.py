"""One training, from new weights or from where it stopped, to the last epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import hsta_kernels

from ..data.clips import Clip
from ..data.inputs import ClipDataset
from ..data.transforms import SPECIAL
from ..errors import UserError
from .augmentation import augment, draw_changes, mix
from .checkpoint_folder import CHECKPOINT
from .checkpoints import STATE_FILE, Task, load_state, save_checkpoint, save_state, sweep
from .clip_order import BalancedSampler
from .recipe import BETAS, Recipe, parameter_groups
from .start import Start

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
    start: Start | None = None,
) -> hsta_kernels.HSTA:
    """Train on ``clips`` and return the model of the last epoch, in evaluation mode on the fabric's device.

    The first weights are drawn, or are those of ``start``.

    After each epoch ``directory`` holds the state of the training and a checkpoint; when it holds a state
    from before, training goes on from there. Weights, order of the clips, augmentation and dropout are
    functions of ``seed`` and epoch, so that on the CPU a training that was stopped ends with the same bits as
    one that was not (other than with ``16-mixed``, whose loss scale begins anew). Raises `UserError` when the
    loss is no longer a number.
    """
    seed_everything(seed, 0)
    model = hsta_kernels.HSTA(config)
    if start is not None:
        model.load_state_dict(model.state_dict() | start.weights)
    groups = parameter_groups(model, recipe)
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=BETAS)
    wrapped, optimizer = fabric.setup(model, adamw)
    state = directory / STATE_FILE
    average, learned = None, model
    if recipe.ema_decay:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
        assert isinstance(average.module, hsta_kernels.HSTA)  # a copy of the model
        learned = average.module
    done = load_state(state, model, adamw, average) if state.is_file() else 0

    dataset = clip_dataset(clips, config, task, training=True, seed=seed)
    labels = [clip.label for clip in clips]
    # With one class for all, the order is a plain random one.
    sampled = labels if recipe.balance == "sampling" else [0] * len(labels)
    sampler = BalancedSampler(sampled, seed, fabric.global_rank, fabric.world_size)
    weights = class_weights(labels, config.num_classes).to(fabric.device) if recipe.balance == "weights" else None
    batch_size = min(recipe.batch_size, len(sampler))  # of each device
    loader = fabric.setup_dataloaders(
        DataLoader(
            dataset,
            batch_size,
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
    log = None
    if fabric.is_global_zero:
        sweep(directory / CHECKPOINT)
        # An epoch that was logged and not saved is logged once more: of the two, readers pass over the first. Not where
        # there is no log yet: readers take files of one second in the order of the processes' numbers, so that the
        # first of two may come second, and must purge nothing.
        resumed = (directory / LOG).is_dir()
        log = SummaryWriter(directory / LOG, purge_step=done * steps + 1 if resumed else None)
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
                rate = recipe.learning_rate_at(epoch + (step + 0.5) / steps, batch_size * fabric.world_size)
                for group in adamw.param_groups:
                    group["lr"] = rate * group["scale"]
                video, special = batch["video"], batch["special"]
                targets = F.one_hot(batch["label"], config.num_classes).float()
                if recipe.augment:
                    changes = draw_changes(len(video), recipe.augment)
                    video, special = augment(video, special, changes, flow=SPECIAL[task.special] is not None)
                if recipe.mixup:
                    video, special, targets = mix(video, special, targets, recipe.mixup)
                loss = F.cross_entropy(
                    wrapped(video, special), targets, weights, label_smoothing=recipe.label_smoothing
                )
                optimizer.zero_grad()
                fabric.backward(loss)
                optimizer.step()
                if average is not None:
                    average.update_parameters(model)
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
                save_checkpoint(directory / CHECKPOINT, learned, task)
                save_state(state, model, adamw, average, epoch + 1)
            fabric.barrier()
    if log:
        log.close()
    return learned.eval()


def class_weights(labels: Sequence[int], num_classes: int) -> torch.Tensor:
    """Inverse to the number of a class's clips, float32 (num_classes,), and 1 in the mean over the clips.

    A class without a clip weighs 0: smoothed targets ask for none of it either.
    """
    counts = torch.bincount(torch.tensor(labels), minlength=num_classes)
    return torch.where(counts > 0, len(labels) / (counts > 0).sum() / counts, 0.0)


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

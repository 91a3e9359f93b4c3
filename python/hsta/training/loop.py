"""One training, from new weights or from where it stopped, to the last epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import hsta_kernels

from ..data.clips import Clip, Label, classes_of
from ..data.inputs import ClipDataset, model_inputs
from ..data.transforms import SPECIAL
from ..errors import UserError
from .augmentation import augment, draw_changes, mix
from .checkpoint_folder import CHECKPOINT
from .checkpoints import STATE_FILE, Task, load_state, save_checkpoint, save_state, sweep
from .clip_order import BalancedSampler
from .processes import told_once
from .recipe import BETAS, Recipe, parameter_groups
from .sharding import copy_whole, shard
from .start import Start

LOG = "log"


class Diverged(UserError):
    """The loss is no longer a number."""


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
    one that was not (other than with ``16-mixed``, whose loss scale begins anew).

    Of several devices each computes a batch of its own, and all get the mean of the gradients: a step is one of a batch
    that is as many times as large, but for augmentation by batches, mixup and dropout, which are drawn for each device.
    Clips that do not fill a last batch are left out, so that all batches weigh the same. The first process writes.

    Raises `Diverged` when the loss is no longer a number, `UserError` for fewer clips than devices.
    """
    with told_once(fabric):
        if len(clips) < fabric.world_size:
            raise UserError(f"{len(clips)} clips are too few for {fabric.world_size} devices: give fewer --devices")
    seed_everything(seed, 0)
    model = hsta_kernels.HSTA(config)
    if start is not None:
        model.load_state_dict(model.state_dict() | start.weights)
    average, learned = None, model
    if recipe.ema_decay:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
        assert isinstance(average.module, hsta_kernels.HSTA)  # a copy of the model
        learned = average.module
    mesh = fabric.strategy.device_mesh if isinstance(fabric.strategy, ModelParallelStrategy) else None
    kept = learned if mesh is None else copy.deepcopy(learned)  # whole, to be written
    wrapped = fabric.setup_module(model)
    if average is not None:
        if mesh is None:
            average.to(fabric.device)
        else:
            shard(learned, mesh)
    # Not before: sharding puts other parameters into the model.
    adamw = torch.optim.AdamW(parameter_groups(model, recipe), lr=0.0, betas=BETAS)
    optimizer = fabric.setup_optimizers(adamw)
    assert not isinstance(optimizer, tuple)  # one for one
    state = directory / STATE_FILE
    with told_once(fabric):
        done = load_state(state, model, adamw, average) if state.is_file() else 0
    if mesh is not None:
        copy_whole(learned, kept)

    dataset = clip_dataset(clips, config, task, training=True, seed=seed)
    targets_of_clips = multi_hot([clip.label for clip in clips], config.num_classes)
    balance = recipe.balance_of(task.action_units)
    # With one class for all, the order is a plain random one.
    sampled = targets_of_clips.argmax(1).tolist() if balance == "sampling" else [0] * len(clips)
    sampler = BalancedSampler(sampled, seed, fabric.global_rank, fabric.world_size)
    weights = None
    if balance == "weights":
        weigh = unit_weights if task.action_units else class_weights
        weights = weigh(targets_of_clips).to(fabric.device)
    targets_of_clips = targets_of_clips.to(fabric.device)
    batch_size = min(recipe.batch_size, len(sampler))  # of each device
    loader = fabric.setup_dataloaders(
        training_loader(dataset, sampler, batch_size, workers=workers, device=fabric.device),
        use_distributed_sampler=False,
    )
    steps = len(loader)
    compute_loss = partial(unit_loss if task.action_units else class_loss, smoothing=recipe.label_smoothing)
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
                video, special = model_inputs(batch)
                targets = targets_of_clips[batch["index"]]
                if recipe.augment:
                    changes = draw_changes(len(video), recipe.augment)
                    video, special = augment(video, special, changes, flow=SPECIAL[task.special] is not None)
                if recipe.mixup:
                    video, special, targets = mix(video, special, targets, recipe.mixup)
                loss = compute_loss(wrapped(video, special), targets, weights)
                optimizer.zero_grad()
                fabric.backward(loss)
                optimizer.step()
                if average is not None:
                    average.update_parameters(model)
                losses.append(_mean_over_devices(loss.detach(), fabric))
                with told_once(fabric):
                    if not math.isfinite(losses[-1]):
                        raise Diverged(
                            f"the loss is {losses[-1]} in epoch {epoch + 1}: try a lower learning rate than "
                            f"{recipe.learning_rate:g}; {directory} holds what the epochs before gave"
                        )
                bar.set_postfix(loss=f"{losses[-1]:.3f}", lr=f"{rate:.1e}", refresh=False)
                bar.update()
            if mesh is not None:
                copy_whole(learned, kept)
            if log:
                log.add_scalar("loss", np.mean(losses), (epoch + 1) * steps)
                log.add_scalar("learning rate", rate, (epoch + 1) * steps)
                log.flush()
                save_checkpoint(directory / CHECKPOINT, kept, task)
            save_state(state, model, adamw, average, epoch + 1, write=log is not None)
            fabric.barrier()
    if log:
        log.close()
    return kept.to(fabric.device).eval()


def _mean_over_devices(loss: Tensor, fabric: Fabric) -> float:
    """All batches have the same number of clips, so that this is the mean over all of them."""
    if fabric.world_size > 1:
        reduced = fabric.all_reduce(loss, reduce_op="mean")
        assert isinstance(reduced, Tensor)  # as what came
        loss = reduced
    return loss.item()


def multi_hot(labels: Sequence[Label], num_classes: int) -> torch.Tensor:
    """1 at the class, or at the action units, of each label and 0 elsewhere: float32 (N, num_classes)."""
    targets = torch.zeros(len(labels), num_classes)
    for row, label in zip(targets, labels, strict=True):
        row[list(classes_of(label))] = 1
    return targets


def class_loss(logits: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Cross-entropy of one class a clip. ``logits`` and ``targets`` (B, C), ``weights`` (C,)."""
    return F.cross_entropy(logits, targets, weights, label_smoothing=smoothing)


def unit_loss(logits: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Binary cross-entropy of each action unit, in the mean. ``weights`` (C,) are those of a unit that is there."""
    return F.binary_cross_entropy_with_logits(
        logits, targets.lerp(torch.full_like(targets, 0.5), smoothing), pos_weight=weights
    )


def class_weights(targets: Tensor) -> Tensor:
    """Inverse to the number of a class's clips, float32 (C,), and 1 in the mean over the clips of ``targets`` (N, C).

    A class without a clip weighs 0: smoothed targets ask for none of it either.
    """
    counts = targets.sum(0)
    return torch.where(counts > 0, len(targets) / (counts > 0).sum() / counts, 0.0)


def unit_weights(targets: Tensor) -> Tensor:
    """Clips without an action unit to each clip with it, float32 (C,): both weigh the same in all; 1 without either."""
    there = targets.sum(0)
    return torch.where((there > 0) & (there < len(targets)), (len(targets) - there) / there, 1.0)


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


def training_loader(
    dataset: ClipDataset, sampler: BalancedSampler, batch_size: int, *, workers: int, device: torch.device
) -> DataLoader:
    """Whole batches of the clips in the sampler's order, loaded by as many processes; with 0 by this one."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        # Else a new iterator over the clips would draw from the stream that dropout draws from.
        generator=torch.Generator(),
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",  # copied to the device while that computes
        drop_last=True,
    )


def seed_everything(*stream: int) -> None:
    """Begin torch's stream of random numbers that these integers name, on every device."""
    torch.manual_seed(int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0] >> np.uint64(1)))

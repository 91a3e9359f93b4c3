"""Options that commands share. Importing this loads neither torch nor Lightning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ..errors import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    import hsta_kernels

    from ..data.clips import DatasetIndex
    from ..training.recipe import Recipe
    from ..training.start import Start


Preset = Annotated[Literal["authors-casme3", "quick"] | None, tyro.conf.arg(metavar="{authors-casme3,quick}")]
# Left out unless given; --help shows the type alone.
OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
UNIT_CLIPS = 10  # of fewer clips there is little to learn, and an F1 means nothing


@dataclass(frozen=True)
class SourceOptions:
    data: Path
    """Folder that holds the data set as its owners give it out, or as `hsta prepare` or `hsta shard` left it."""
    dataset: str = "casme3"
    """Name of the data set, which tells how its files are laid out: casme2, samm, smic, casme3 (part A), mmew, dfme,
    megc2019 (the composite) or folder (one's own)."""


@dataclass(frozen=True)
class DatasetOptions(SourceOptions):
    classes: Annotated[
        Literal["3", "5", "7", "8", "objective", "action-units"] | None, tyro.conf.arg(metavar="CLASSES")
    ] = None
    """What is told apart: 3, 5, 7 or 8 classes of emotion as the data set has them, the objective classes I to VII, or
    action-units, of which a clip shows any number; every emotion that the data set names if left out."""

    def read_all(self) -> DatasetIndex:
        """All that is there, and what was wrong."""
        from ..data.registry import read_dataset

        return read_dataset(self.dataset, self.data, self.classes)


@dataclass(frozen=True)
class DataOptions(DatasetOptions):
    also: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FOLDER ...")] = ()
    """Further data sets, such as samm=SAMM smic=SMIC, joined with the first; all with the same --classes."""
    units: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")] = ()
    """With --classes action-units, those to learn, such as 1 2 4 12; if left out, those of enough clips."""
    unit_clips: OptionalInt = None
    """With --classes action-units, the least number of clips in which a unit must occur to be learned; 10 if left
    out."""
    special: Literal["frames", "apex-offset", "flow", "flow-dis", "flow-tvl1"] = "frames"
    """What the special frames are: onset and apex; apex and offset; or the optical flow (u, v, strain) from onset to
    apex and from apex to offset, Farnebaeck's, by dense inverse search, or by TV-L1 where OpenCV has it."""
    workers: int = 0
    """Number of processes that load clips; with 0 the training process does it itself."""

    def read(self) -> DatasetIndex:
        """The clips, labelled by the classes that can be learned: those that occur, or occur often enough."""
        if self.workers < 0:
            raise UserError(f"workers must be 0 or more, got {self.workers}")
        if self.classes != "action-units" and (self.units or self.unit_clips is not None):
            raise UserError("--units and --unit-clips go with --classes action-units")
        if self.units and self.unit_clips is not None:
            raise UserError("--units names the action units and --unit-clips chooses them: give one of the two")
        if self.unit_clips is not None and self.unit_clips < 1:
            raise UserError(f"unit_clips must be at least 1, got {self.unit_clips}")

        from ..data.joined import join

        index = join([self.read_all(), *map(self._read_also, self.also)])
        from ..data.transforms import check_special

        check_special(self.special)
        if index.action_units:
            self._keep_units(index)
            return index
        present = [label for label, count in enumerate(index.counts()) if count]
        if len(present) < 2:
            raise UserError(f"{self.data} holds clips of one class only: {index.class_names[present[0]]}")
        absent = [name for label, name in enumerate(index.class_names) if label not in present]
        if absent:
            index.notes.append(f"no clip of {', '.join(absent)}: left out of the classes")
            index.keep(present)
        return index

    def _keep_units(self, index: DatasetIndex) -> None:
        """Leave the action units that are asked for, or those of enough clips."""
        from ..data.units import unit_name

        counts = dict(zip(index.class_names, index.counts(), strict=True))
        if self.units:
            kept = [unit_name(unit) for unit in sorted(set(self.units))]
            if absent := [name for name in kept if not counts.get(name)]:
                raise UserError(f"no clip shows {', '.join(absent)}; there are {_counted(counts)}")
        else:
            least = UNIT_CLIPS if self.unit_clips is None else self.unit_clips
            kept = [name for name, count in counts.items() if count >= least]
            if not kept:
                raise UserError(f"no action unit occurs in {least} clips (--unit-clips); there are {_counted(counts)}")
        if dropped := {name: count for name, count in counts.items() if name not in kept}:
            index.notes.append(f"action units that are not learned: {_counted(dropped)}")
        index.keep([index.class_names.index(name) for name in kept])

    def _read_also(self, given: str) -> DatasetIndex:
        name, sign, folder = given.partition("=")
        if not sign:
            raise UserError(f"also must be NAME=FOLDER, such as samm=SAMM, got {given}")
        return replace(self, dataset=name, data=Path(folder)).read_all()


def _counted(units: dict[str, int]) -> str:
    return ", ".join(f"{name} (of {count} clips)" for name, count in units.items())


@dataclass(frozen=True)
class ModelOptions:
    model: str = "hsta_tiny_224"
    """Name of the model: hsta_tiny_224, hsta_small_224, hsta_base_224, or one of these with _k3 before _224."""
    image_size: OptionalInt = None
    """Side in pixels of the frames that the model sees; the named model's own if left out."""
    num_frames: OptionalInt = None
    """Number of video frames that the model sees; the named model's own if left out."""
    attention: Literal["divided", "joint"] = "divided"
    """How the model attends to a video: divided is over time and then over space, joint is over both at once."""
    start_from: OptionalPath = None
    """Weights to begin with, of the same model but for its classes, frames and image size: a run's folder, one that
    save_pretrained wrote, or a checkpoint of the authors' code."""
    depth: Annotated[tuple[tuple[int, int], ...] | None, tyro.conf.arg(metavar="INT INT ...")] = None
    """Layers of the special and of the video branch in each block, such as 1 2 1 2 for two; else the model's own."""

    def begin(self, index: DatasetIndex, recipe: Recipe) -> tuple[hsta_kernels.HSTAConfig, Start | None]:
        """The configuration of the model that learns the classes, and the weights that it begins with, if any.

        What should be known of them is added to the notes. Raises `UserError` when the recipe is not for the classes.
        """
        recipe.balance_of(index.action_units)
        config = self.config(len(index.class_names), recipe)
        if self.start_from is None:
            return config, None
        from ..training.start import Start

        config, start = Start.read(self.start_from).fit_to(config, index.class_names)
        index.notes += start.notes()
        return config, start

    def config(self, num_classes: int, recipe: Recipe) -> hsta_kernels.HSTAConfig:
        import hsta_kernels

        given = {
            name: getattr(self, name)
            for name in ("image_size", "num_frames", "depth")
            if getattr(self, name) is not None
        }
        try:
            return hsta_kernels.create_model(
                self.model,
                num_classes=num_classes,
                attention=self.attention,
                **recipe.drop_rates,
                **given,
            ).config
        except ValueError as error:
            raise UserError(str(error)) from error


@dataclass(frozen=True)
class MachineOptions:
    """Where and how to compute; passed to Lightning Fabric."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device to compute on; auto takes a GPU where there is one."""
    devices: str = "1"
    """How many devices to use, or which ("0,1"), or auto for all; on each machine, of several."""
    num_nodes: int = 1
    """Number of machines that share the training, each with as many devices; the command is started on all of them, by
    torchrun or SLURM."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Number format of the computation; weights are float32 in any case."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several devices share the work: each has batches of its own, and with ddp all weights, with fsdp a part of
    them (FSDP2), for models that do not fit; auto is ddp where there are several."""

    def fabric(self) -> Fabric:
        """Launched. Raises `UserError` when the machine has no such devices, or other processes were started."""
        import os
        import warnings

        if self.num_nodes < 1:
            raise UserError(f"num_nodes must be at least 1, got {self.num_nodes}")

        import torch
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import ModelParallelStrategy

        from ..training.sharding import shard

        # Lightning's advice to set matmul precision or to load with more processes is not for our users.
        warnings.filterwarnings("ignore", module="lightning_fabric")
        try:
            fabric = Fabric(
                accelerator=self.accelerator,
                devices=self.devices,
                precision=self.precision,
                strategy=ModelParallelStrategy(shard) if self.strategy == "fsdp" else self.strategy,
                num_nodes=self.num_nodes,
            )
            # Each of them would else do the whole training, in the same folder.
            if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
                started = int(os.environ["WORLD_SIZE"])
                if fabric.world_size != started:
                    raise ValueError(f"torchrun started {started} processes: --devices times --num-nodes must be that")
            fabric.launch()
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"cannot use {self.devices} device(s) of {self.accelerator}: {error}") from error
        return fabric


@dataclass(frozen=True)
class RayOptions:
    address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """With --launcher ray, where the cluster is found, or auto for one that was started on this machine; RAY_ADDRESS if
    left out; without both one is started on this machine and ends with the command."""
    cpus_per_task: int = 1
    """With --launcher ray, processor cores that a fold takes."""
    gpus_per_task: OptionalFloat = None
    """With --launcher ray, GPUs that a fold takes: up to 1, such as 0.25 where four folds fit one; 1 if left out, and 0
    where the cluster has none."""

    def check(self) -> None:
        if self.cpus_per_task < 1:
            raise UserError(f"cpus_per_task must be at least 1, got {self.cpus_per_task}")
        if self.gpus_per_task is not None and not 0 <= self.gpus_per_task <= 1:
            raise UserError(f"gpus_per_task must be from 0 to 1, got {self.gpus_per_task:g}")


def check_seed(seed: int) -> None:
    if seed < 0:
        raise UserError(f"seed must be 0 or more, got {seed}")

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


# Left out unless given; --help shows the type alone.
OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT")]


@dataclass(frozen=True)
class DataOptions:
    data: Path
    """Folder of the data set, as it is distributed."""
    dataset: str = "casme3"
    """Whose layout it has."""
    special: Literal["frames", "flow"] = "frames"
    """Special frames: onset and apex, or optical-flow images of onset to apex and apex to offset."""
    workers: int = 0
    """Processes that load clips; 0: the training does it itself."""

    def read(self) -> DatasetIndex:
        """The clips, labelled by the classes that occur; a class without a clip cannot be learned."""
        from ..data.registry import read_dataset

        if self.workers < 0:
            raise UserError(f"workers must be 0 or more, got {self.workers}")
        index = read_dataset(self.dataset, self.data)
        present = sorted({clip.label for clip in index.clips})
        if len(present) < 2:
            raise UserError(f"{self.data} holds clips of one class only: {index.class_names[present[0]]}")
        absent = [name for label, name in enumerate(index.class_names) if label not in present]
        if absent:
            index.notes.append(f"no clip of {', '.join(absent)}: left out of the classes")
            index.class_names = tuple(index.class_names[label] for label in present)
            index.clips = [replace(clip, label=present.index(clip.label)) for clip in index.clips]
        return index


@dataclass(frozen=True)
class ModelOptions:
    model: str = "hsta_tiny_224"
    """Size: hsta_tiny_224, hsta_small_224, hsta_base_224, or one of these with _k3 before _224."""
    image_size: OptionalInt = None
    """Side of the frames in pixels, if not the model's."""
    num_frames: OptionalInt = None
    """Frames of the video, if not the model's."""
    attention: Literal["divided", "joint"] = "divided"
    """Over time and then over space, or over both at once."""
    depth: Annotated[tuple[tuple[int, int], ...] | None, tyro.conf.arg(metavar="INT INT ...")] = None
    """Layers of the special and of the video branch in each block, if not the model's: 1 2 1 2 is two blocks."""

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
                drop_rate=recipe.drop_rate,
                drop_path_rate=recipe.drop_path_rate,
                head_drop_rate=recipe.head_drop_rate,
                **given,
            ).config
        except ValueError as error:
            raise UserError(str(error)) from error


@dataclass(frozen=True)
class MachineOptions:
    """Passed to Lightning Fabric."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """What to compute on."""
    devices: str = "1"
    """How many of it, or which ("0,1"), or auto for all."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Of the computation; weights are float32 in any case."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How several devices share the work."""

    def fabric(self) -> Fabric:
        """Launched. Raises `UserError` when the machine has no such devices."""
        import warnings

        from lightning_fabric import Fabric

        # Lightning's advice to set matmul precision or to load with more processes is not for our users.
        warnings.filterwarnings("ignore", module="lightning_fabric")
        try:
            fabric = Fabric(
                accelerator=self.accelerator,
                devices=self.devices,
                precision=self.precision,
                strategy=self.strategy,
            )
            fabric.launch()
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"cannot use {self.devices} device(s) of {self.accelerator}: {error}") from error
        return fabric


def check_seed(seed: int) -> None:
    if seed < 0:
        raise UserError(f"seed must be 0 or more, got {seed}")

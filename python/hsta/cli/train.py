"""``hsta train``: train one model on all clips of a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..training.recipe import Recipe
from .options import DataOptions, MachineOptions, ModelOptions, OptionalPath, Preset, check_seed
from .run_folder import begin


@dataclass
class Train:
    """Train a model on all clips of a data set.

    For a figure that means something use `hsta evaluate`: it tests on subjects it has not trained on.
    """

    data: DataOptions
    output: Path
    """Folder of the run, which gets the checkpoint, a log for TensorBoard and these arguments."""
    model: ModelOptions = field(default_factory=ModelOptions)
    recipe: Recipe = field(default_factory=Recipe)
    tuned: OptionalPath = None
    """Folder that `hsta tune --protocol none` wrote, whose recipe is taken; the other options are those given there."""
    preset: Preset = None
    """On the command line, options of a kind, which those that are given override: the recipe of HSTA's authors for
    CAS(ME)^3, or a quick one to see that all works."""
    machine: MachineOptions = field(default_factory=MachineOptions)
    seed: int = 0
    """Seed of the random numbers that set first weights, the order of the clips, augmentation and dropout."""
    resume: bool = False
    """Go on with a run that was stopped; it ends as if it had not been."""
    overwrite: bool = False
    """Delete the run that the folder holds and begin it again."""

    def run(self) -> None:
        check_seed(self.seed)
        index = self.data.read()

        from ..training.checkpoint_folder import CHECKPOINT
        from ..training.checkpoints import STATE_FILE, Task
        from ..training.loop import LOG, fit

        recipe, recipes = self.recipe, {}
        if self.tuned is not None:
            from ..tuning.tuned import EVERYBODY, tuned_recipe

            recipe = tuned_recipe(self.tuned, EVERYBODY, self.recipe)
            recipes = {EVERYBODY: recipe}
        config, start = self.model.begin(index, recipe)
        people: tuple[str, ...] | None = index.people
        if start is not None:  # who learned from whom is not known goes on as that
            people = None if start.people is None else tuple(sorted({*index.people, *start.people}))
        fabric = self.machine.fabric()
        begin(self, index, fabric, owned=(CHECKPOINT, LOG, STATE_FILE), recipes=recipes)
        fit(
            config,
            Task(
                index.name,
                index.class_names,
                self.data.special,
                index.generated,
                people,
                index.action_units,
                index.prepared,
            ),
            index.clips,
            recipe,
            fabric=fabric,
            directory=self.output,
            seed=self.seed,
            workers=self.data.workers,
            start=start,
        )
        if fabric.is_global_zero:
            print(f"trained on {len(index.clips)} clips: {self.output / CHECKPOINT}")

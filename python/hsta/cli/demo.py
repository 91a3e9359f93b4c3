"""``hsta demo``: everything once, in minutes, on data that anybody may have."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from ..training.recipe import Recipe
from .evaluate import Evaluate
from .options import DataOptions, MachineOptions, ModelOptions, check_seed
from .predict import Predict
from .train import Train

EMOTIONS = ("disgust", "surprise", "sad", "happy")
SUBJECTS = 12
CLIPS_PER_SUBJECT = 12
FOLDS = 2
# The authors' size tiny, made smaller still; and their recipe, made shorter and without what keeps large models
# from learning by heart.
MODEL = ModelOptions(image_size=80, num_frames=4, depth=((1, 1), (1, 1)))
RECIPE = Recipe(
    epochs=24,
    batch_size=16,
    learning_rate=1.6e-2,
    warmup_epochs=2,
    drop_rate=0.0,
    drop_path_rate=0.0,
    head_drop_rate=0.0,
)


@dataclass
class Demo:
    """Generate faces, train, predict on a video, evaluate beside a control, and measure speed.

    Takes some two minutes on two cores. The data are generated: no figure says anything about real faces.
    """

    output: Path
    """Folder that gets data, runs and pictures."""
    seed: int = 0
    """Seed of the random numbers that make the people and train the models."""

    def run(self) -> None:
        check_seed(self.seed)

        from ..generated.writer import generate_dataset
        from ..results.metrics import Scores
        from ..results.recognition import Recognition

        start = time.perf_counter()
        people = self.output / "generated"
        # Clips are loaded beside the model: the demo's is so small that half of a step would go to its flow.
        data = DataOptions(people, special="flow", workers=1)
        machine = MachineOptions(accelerator="cpu")
        # Twice the clips of a fold: two thirds of the epochs are more steps all the same.
        recipe = replace(RECIPE, epochs=16)
        train = Train(
            data,
            self.output / "training",
            MODEL,
            recipe,
            machine=machine,
            seed=self.seed,
            overwrite=True,
        )
        evaluate = Evaluate(
            data,
            self.output / "evaluation",
            "leave-subjects-out",
            FOLDS,
            model=MODEL,
            recipe=RECIPE,
            machine=machine,
            seed=self.seed,
            overwrite=True,
        )
        control = replace(evaluate, output=self.output / "control", shuffle_labels=True)

        _step(1, f"generate {SUBJECTS} people, the first of them a photograph, {CLIPS_PER_SUBJECT} clips of each")
        generate_dataset(people, SUBJECTS, CLIPS_PER_SUBJECT, self.seed, image_size=112, emotions=EMOTIONS)
        faces = self.output / "faces.png"
        _draw(faces, data)
        print(f"picture: {faces}")
        _step(2, "train on all of them")
        train.run()
        _step(3, "predict on a video of one more person")
        video, truth = self._film()
        (result,) = Predict((video,), train.output, output=self.output / "predictions").run()
        assert isinstance(result, Recognition)  # nothing was to be spotted
        print(f"  (generated as {truth})")
        _step(4, f"evaluate: {FOLDS} models, each tested on people it has not seen")
        (learned,) = evaluate.run()
        _step(5, "the control: the same with the labels of the training clips shuffled")
        (shuffled,) = control.run()
        _step(6, "speed of the fused module against the reference, taking turns in this process")
        print(_speed())

        chance = 1 / len(EMOTIONS)
        print(f"\n{'':<18} {'UF1':>6} {'UAR':>6} {'accuracy':>9}")
        for name, scores in (("learned", learned), ("shuffled labels", shuffled)):
            assert isinstance(scores, Scores)  # of emotions
            print(f"{name:<18} {scores.uf1:>6.3f} {scores.uar:>6.3f} {scores.accuracy:>9.3f}")
        print(f"{'chance':<18} {'':>6} {chance:>6.3f} {chance:>9.3f}")
        print(
            "All figures are from generated data: they are no evidence about real faces.\n\n"
            f"Done in {time.perf_counter() - start:.0f} s. Pictures:\n"
            f"  {faces}\n"
            f"  {self.output / 'predictions' / (video.stem + '.png')}  (the video: {result.label})\n"
            f"  {evaluate.output / 'confusion_matrix.png'}\n  {control.output / 'confusion_matrix.png'}"
        )

    def _film(self) -> tuple[Path, str]:
        """A video of somebody who is in no training clip, and what is to be seen in it."""
        import numpy as np

        from ..data.video import write_video
        from ..generated.clips import generate_clip, subject_portrait

        emotion = EMOTIONS[self.seed % len(EMOTIONS)]
        portrait = subject_portrait(self.seed, SUBJECTS + 1)
        rng = np.random.default_rng([self.seed, SUBJECTS + 1])
        clip = generate_clip(portrait, emotion, rng, margin=0.6)
        path = self.output / "somebody.mp4"
        write_video(path, clip.frames, 30.0)
        return path, f"{emotion}, onset {clip.onset}, apex {clip.apex}, offset {clip.offset}"


def _draw(path: Path, data: DataOptions) -> None:
    """The first person's first clip of each emotion."""
    from ..data.frame_files import FrameFiles
    from ..results.plots import plot_movements

    index = data.read()
    movements = {}
    for label, name in enumerate(index.class_names):
        clip = next(clip for clip in index.clips if clip.label == label)
        assert clip.apex is not None  # all are given
        frames = FrameFiles(clip.files)
        movements[name] = frames[0], frames[clip.apex]
    plot_movements(path, movements)


def _speed() -> str:
    import hsta_kernels

    from ..results.speed import compare, table

    config = hsta_kernels.create_model("hsta_tiny_224").config
    return f"hsta_tiny_224, 4 clips of 6 frames\n{table(compare(config, batch_size=4, rounds=3))}"


def _step(number: int, what: str) -> None:
    print(f"\n[{number}/6] {what}", flush=True)

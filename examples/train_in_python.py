"""Training and testing without the command line: on some people's clips, and then on those of the others.

With one's own data it is ``read_dataset("folder", "path/of/the/data")``; here the faces are generated.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from hsta.data.folds import subject_folds
from hsta.data.registry import read_dataset
from hsta.generated.writer import generate_dataset
from hsta.results.evaluation import probabilities
from hsta.results.metrics import score
from hsta.training.checkpoints import Task
from hsta.training.loop import fit
from hsta.training.recipe import Recipe
from lightning_fabric import Fabric

import hsta_kernels

with TemporaryDirectory() as temporary:
    folder = Path(temporary)
    emotions = ("happy", "surprise")
    generate_dataset(folder, 3, 2, 0, format="folder", image_size=48, emotions=emotions, progress=False)
    index = read_dataset("folder", folder)
    print(*index.told, sep="\n")  # what was wrong in the data, and what was done about it

    # Nobody is tested by a model that was trained on them.
    fold = subject_folds(index.clips)[0]
    learned, tested = ([index.clips[i] for i in indices] for indices in (fold.train, fold.test))

    task = Task(index.name, index.class_names, special="frames", generated=index.generated)
    recipe = Recipe(epochs=2, warmup_epochs=1, batch_size=2)  # the authors' is Recipe()
    config = hsta_kernels.HSTAConfig(
        image_size=32, embed_dim=(48, 96), num_heads=(3, 3), depth=((1, 1),), num_frames=2,
        num_classes=len(index.class_names), drop_rate=recipe.drop_rate, drop_path_rate=recipe.drop_path_rate,
        head_drop_rate=recipe.head_drop_rate,
    )  # fmt: skip
    fabric = Fabric(accelerator="cpu")
    run = folder / "run"  # a training that was stopped goes on from what it holds; run/checkpoint is the model
    model = fit(config, task, learned, recipe, fabric=fabric, directory=run, seed=0)

    rows = probabilities(model, tested, task, batch_size=2, fabric=fabric)
    predicted = [max(range(len(row)), key=row.__getitem__) for row in rows]
    scores = score([clip.label for clip in tested], predicted, index.class_names)
    print(f"tested on {', '.join(fold.subjects)}: accuracy {scores.accuracy:.2f}, UAR {scores.uar:.2f}")
    # Scores of all folds are pooled in one confusion matrix: `hsta evaluate` does that.

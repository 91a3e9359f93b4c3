"""Who is tested and who is learned from: folds that share no subject."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .clips import Clip, Label
from .natural_order import natural_key


@dataclass(frozen=True)
class Fold:
    """``train`` and ``test`` index the clips; ``subjects`` are those tested."""

    name: str
    subjects: tuple[str, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]


def subject_folds(clips: Sequence[Clip], folds: int | None = None) -> list[Fold]:
    """Every clip is tested once, by a model that was trained on none of its subject's clips.

    ``folds`` None is leave-one-subject-out: a fold a subject, named after it. A number gives that many groups
    of subjects, filled in turn with the largest subject left. A subject is a person of a data set
    (`Clip.person`), whichever way the clips spell the name.
    Raises ValueError when there are fewer than two subjects, or fewer than ``folds``.
    """
    sizes = Counter(clip.person for clip in clips)
    names = {clip.person: clip.subject for clip in reversed(clips)}  # as the person's first clip spells it
    subjects = sorted(sizes, key=lambda person: (person[0], natural_key(names[person])))
    if len(subjects) < 2:
        raise ValueError(f"at least two subjects are needed to leave some out, got {len(subjects)}")
    if folds is None:
        groups = {f"{person[0]}-{names[person]}": [person] for person in subjects}
    else:
        if not 2 <= folds <= len(subjects):
            raise ValueError(f"folds must be from 2 to the {len(subjects)} subjects, got {folds}")
        groups = {f"group-{number + 1}": [] for number in range(folds)}
        for subject in sorted(subjects, key=lambda subject: -sizes[subject]):
            smallest = min(groups.values(), key=lambda group: sum(sizes[member] for member in group))
            smallest.append(subject)
    return [_fold(name, group, [names[person] for person in group], clips) for name, group in groups.items()]


def dataset_folds(clips: Sequence[Clip], tested: Sequence[str] = ()) -> list[Fold]:
    """Each data set, or each of those ``tested``, is tested by a model that was trained on all the others.

    Raises ValueError when there is one data set only, or none of a name.
    """
    datasets = list(dict.fromkeys(clip.dataset for clip in clips))
    if len(datasets) < 2:
        raise ValueError(f"at least two data sets are needed to test one on the others, got {', '.join(datasets)}")
    if unknown := [name for name in tested if name not in datasets]:
        raise ValueError(f"test_on must be some of {', '.join(datasets)}, got {', '.join(unknown)}")
    folds = []
    for dataset in dict.fromkeys(tested or datasets):
        people = dict.fromkeys(clip.person for clip in clips if clip.dataset == dataset)
        names = {clip.person: clip.subject for clip in reversed(clips)}
        folds.append(_fold(dataset, list(people), [names[person] for person in people], clips))
    return folds


def check_disjoint(fold: Fold, clips: Sequence[Clip]) -> None:
    """Raises ValueError, naming them, when subjects are both learned from and tested."""
    learned, tested = ({clips[i].person for i in indices} for indices in (fold.train, fold.test))
    if shared := sorted(learned & tested):
        raise ValueError(f"fold {fold.name} tests subjects that it was trained on: {shared}")


def shuffled_labels(labels: Sequence[Label], seed: Sequence[int]) -> list[Label]:
    """The labels dealt out anew: the control in which nothing can be learned that holds for others."""
    return [labels[i] for i in np.random.default_rng(list(seed)).permutation(len(labels))]


def _fold(name: str, group: list[tuple[str, str]], subjects: list[str], clips: Sequence[Clip]) -> Fold:
    tested = [clip.person in group for clip in clips]
    fold = Fold(
        name,
        tuple(subjects),
        tuple(i for i, out in enumerate(tested) if not out),
        tuple(i for i, out in enumerate(tested) if out),
    )
    check_disjoint(fold, clips)
    return fold

"""``hsta predict``: the micro-expressions in video files, in folders of frames, before a webcam."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ..data.sources import check_source, open_film, webcam_number
from ..errors import UserError
from ..files import write_text
from ..generated.mark import NO_EVIDENCE
from ..training.checkpoint_folder import checkpoint_folder
from .options import OptionalInt

if TYPE_CHECKING:
    import hsta_kernels

    from ..results.recognition import Recognition
    from ..results.spotting import Interval
    from ..training.checkpoints import Task

    Truth = dict[Path, list[tuple[float, float]]]

# On generated faces that do nothing but live the score reaches 0.67 pixels.
THRESHOLD = 0.7


@dataclass
class Predict:
    """Tell the micro-expression in a video, and show where the model looked; or with --spot, find every one in it."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Video files and folders of frames to look at; webcam is the first camera, webcam:1 the second."""
    checkpoint: Path
    """Folder that `hsta train` wrote, with the model to use."""
    output: Path = Path("predictions")
    """Folder that gets the answers as pictures and as JSON, and with --spot as csv."""
    json: bool = False
    """Print the answers as JSON, a line each, and nothing else."""
    onset: OptionalInt = None
    """Number of the first frame of the expression, counted from 0; found if left out."""
    apex: OptionalInt = None
    """Number of the frame in which the expression is strongest; found if left out."""
    offset: OptionalInt = None
    """Number of the last frame of the expression; found if left out."""
    fps: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Frames a second at which it was filmed; if left out a video's timestamps tell, and a folder has 30."""
    seconds: float = 10.0
    """How long a webcam is watched."""
    detector: Annotated[Literal["mtcnn", "cascade"] | None, tyro.conf.arg(metavar="{mtcnn,cascade}")] = None
    """What finds faces, as in `hsta prepare`. If left out it is what prepared the data that the model learned from;
    where they were not prepared, the square around a face serves that OpenCV's cascade finds."""
    spot: bool = False
    """Find every micro-expression: intervals in seconds and a score over time. Long films need no more memory."""
    threshold: float = THRESHOLD
    """With --spot, the least score of a micro-expression, in pixels of a face 224 wide."""
    truth: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """With --spot, csv table of the true intervals (file, onset, offset; seconds): gives precision, recall and F1."""

    def run(self) -> list[Recognition] | list[list[Interval]]:
        """What was found in each path that could be read. Raises `UserError` when one could not."""
        self._check()
        truth = self._read_truth()

        from ..training.checkpoints import load_checkpoint

        model, task = load_checkpoint(self.checkpoint)

        from ..results.recognition import how_to_find

        how_to_find(model, task, self.detector)  # what is not installed is told once, not for each film
        results: list = []
        for path in self.paths:
            try:
                result = (self._spot if self.spot else self._recognize)(path, model, task)
            except UserError as error:
                if len(self.paths) == 1:
                    raise
                print(f"hsta: {error}", file=sys.stderr)
                result = None
            results.append(result)
        told = [result for result in results if result is not None]
        if truth is not None:
            self._score(truth, results)
        if len(told) < len(self.paths):
            raise UserError(f"{len(self.paths) - len(told)} of {len(self.paths)} could not be read")
        return told

    def _check(self) -> None:
        """Complaints come before libraries are loaded."""
        if not self.paths:
            raise UserError("Missing from hsta predict: PATHS, at least one video or folder")
        events = (self.onset, self.apex, self.offset)
        if any(event is not None for event in events):
            if self.spot:
                raise UserError("--spot finds onset, apex and offset: they are not given with it")
            if len(self.paths) > 1:
                raise UserError(f"onset, apex and offset are of one film, got {len(self.paths)}")
            if self.onset is None or self.offset is None:
                raise UserError("onset and offset must be given together (apex may be left out)")
            if not 0 <= self.onset <= self.offset:
                raise UserError(f"onset and offset must be in order, got {self.onset} and {self.offset}")
            if self.apex is not None and not self.onset <= self.apex <= self.offset:
                raise UserError(f"apex must be from onset {self.onset} to offset {self.offset}, got {self.apex}")
        for name in ("fps", "seconds", "threshold"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name} must be a positive number, got {value:g}")
        if not self.spot and (self.truth is not None or self.threshold != THRESHOLD):
            raise UserError("--truth and --threshold go with --spot")
        if self.fps is not None and any(webcam_number(path) is not None for path in self.paths):
            raise UserError("--fps is not for a webcam: its frames are timed as they come")
        if len(self.paths) == 1:  # of several, the others are told all the same
            check_source(self.paths[0])
        checkpoint_folder(self.checkpoint)

    def _recognize(self, path: Path, model: hsta_kernels.HSTA, task: Task) -> Recognition:
        from ..results.plots import plot_prediction
        from ..results.recognition import recognize

        name = _free_name(self.output, path)
        film = open_film(path, fps=self.fps, seconds=self.seconds)
        events = (self.onset, self.apex, self.offset)
        result, apex = recognize(model, task, film, file=_file(path), events=events, detector=self.detector)
        _tell_notes(path, result.notes)
        if self.json:
            print(json.dumps(asdict(result)), flush=True)
        else:
            _print(path, result)
        write_text(self.output / f"{name}.json", json.dumps(asdict(result), indent=2) + "\n")
        picture = self.output / f"{name}.png"
        special, video = (size / model.config.image_size for size in model.config.patch_size)
        plot_prediction(picture, result, apex, {"video": video, "special": special})
        if not self.json:
            print(f"picture: {picture}")
        return result

    def _spot(self, path: Path, model: hsta_kernels.HSTA, task: Task) -> list[Interval]:
        from ..results.plots import plot_intervals
        from ..results.spotting import Curve, spot_film, write_intervals

        name = _free_name(self.output, path)
        film = open_film(path, fps=self.fps, seconds=self.seconds)
        curve = Curve()
        intervals = []
        spotted = spot_film(
            model, task, film, file=_file(path), threshold=self.threshold, curve=curve, detector=self.detector
        )
        for interval in spotted:
            if self.json:
                print(json.dumps(asdict(interval)), flush=True)
            else:
                _print_interval(path, interval)
            intervals.append(interval)
        _tell_notes(path, film.notes)
        found = {"intervals": [asdict(interval) for interval in intervals], **asdict(curve)}
        whole = {"file": _file(path), "notes": film.notes, "threshold": self.threshold, **found}
        write_text(self.output / f"{name}.spotted.json", json.dumps(whole) + "\n")
        write_intervals(self.output / f"{name}.spotted.csv", intervals)
        picture = self.output / f"{name}.spotted.png"
        title = f"{len(intervals)} spotted: {path.name}" + (f" (learned from {NO_EVIDENCE})" if task.generated else "")
        plot_intervals(picture, title, curve, intervals, self.threshold)
        if not self.json:
            print(f"{path}: {len(intervals)} spotted" + (f"; learned from {NO_EVIDENCE}" if task.generated else ""))
            print(f"picture: {picture}")
        return intervals

    def _read_truth(self) -> Truth | None:
        """The true intervals of each path. Raises `UserError` when the table has none of one of them."""
        if self.truth is None:
            return None
        from ..results.interval_metrics import read_truth

        truth = read_truth(self.truth)
        for path in self.paths:
            if path.resolve() not in truth:
                raise UserError(f"{self.truth} has no row of {path}: a film without micro-expressions has one too")
        others = truth.keys() - {path.resolve() for path in self.paths}
        if others:
            print(f"note: {self.truth} has {len(others)} more films: they do not count", file=sys.stderr)
        return truth

    def _score(self, truth: Truth, results: list[list[Interval] | None]) -> None:
        """Of all films that could be read together."""
        from ..results.interval_metrics import score_intervals

        pairs = [
            (truth[path.resolve()], [(interval.onset, interval.offset) for interval in intervals])
            for path, intervals in zip(self.paths, results, strict=True)
            if intervals is not None
        ]
        scores = score_intervals(pairs).to_dict()
        if self.json:
            print(json.dumps(scores), flush=True)
        else:
            print(", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in scores.items()))


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3g}"


def _file(path: Path) -> str:
    """What results say they are of: it tells films of one name apart."""
    return str(path if webcam_number(path) is not None else path.absolute())


def _free_name(output: Path, path: Path) -> str:
    """A name for the results of ``path``, under which ``output`` holds none of another film.

    It is the film's own without its ending if it can be (a folder's name may hold dots), else longer by the ending
    and by the folders it lies in. Raises `UserError` when all are taken.
    """
    *folders, own = Path(_file(path)).parts
    own = own.replace(":", "-")
    short = own if path.is_dir() else Path(own).stem
    longer = ["-".join([*folders[i:], own]) for i in range(len(folders), 0, -1)]
    for name in (short, *longer):
        if all(_owner(output / f"{name}{ending}") in (None, _file(path)) for ending in (".json", ".spotted.json")):
            return name
    raise UserError(f"{output} holds results of other films under every name for {path}; choose another folder")


def _owner(results: Path) -> str | None:
    if not results.is_file():
        return None
    try:
        return json.loads(results.read_text(encoding="utf-8"))["file"]
    except (ValueError, KeyError, TypeError):
        return ""  # nobody's we know


def _tell_notes(path: Path, notes: list[str]) -> None:
    for note in notes:
        print(f"note: {path}: {note}", file=sys.stderr)


def _print(path: Path, result: Recognition) -> None:
    print(f"{path}: {result.label}")
    for name, probability in sorted(result.probabilities.items(), key=lambda item: -item[1]):
        print(f"  {name:<12} {probability:.3f}")
    how = "spotted" if result.spotted else "given"
    frames = (result.onset, result.apex, result.offset)
    onset, apex, offset = (f"{frame} ({result.times[frame]:.2f} s)" for frame in frames)
    print(f"  onset {onset}, apex {apex}, offset {offset} ({how})")
    if result.generated:
        print(f"  learned from {NO_EVIDENCE}")


def _print_interval(path: Path, found: Interval) -> None:
    print(
        f"{path}: {found.onset:.2f} to {found.offset:.2f} s, apex {found.apex:.2f} s: "
        f"{found.label} {found.probability} (score {found.score:.2f})",
        flush=True,
    )

"""Runs a command, and says in one line what is wrong."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys

from ..errors import UserError

# What the extras install, as it is imported.
EXTRAS = {
    "frontend": {
        "av",
        "cv2",
        "filelock",
        "lightning_fabric",
        "matplotlib",
        "openpyxl",
        "PIL",
        "skimage",
        "tensorboard",
        "tqdm",
        "tyro",
    },
    "export": {"onnx", "onnxruntime", "onnxscript", "openvino"},
    "serve": {"aiohttp", "yarl"},
    "ray": {"ray"},
    "tune": {"optuna"},
}
GOES_ON = {  # how a command that was stopped goes on
    "train": "the same command with --resume goes on from here",
    "evaluate": "the same command with --resume goes on from here",
    "tune": "the same command with --resume goes on from here",
    "prepare": "the same command (without --overwrite) goes on from here",
    "shard": "the same command (without --overwrite) goes on from here",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 where `check` or `prepare` lose clips, 2 for what the user can put
    right, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _spin_briefly()
    # A terminal that lacks a letter, of a path or of tyro's help, shows a question mark in its place.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        return _run(arguments)
    except UserError as error:
        # From a process that loads clips it comes with that process's traceback above it.
        _complain(str(error).rpartition(f"{UserError.__module__}.{UserError.__qualname__}: ")[2])
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _complain(f"{error.strerror or error}{where}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        _complain(f"{error.name} is not installed: pip install hsta-kernels[{extra}]")
    except KeyboardInterrupt:
        hint = GOES_ON.get(arguments[0] if arguments else "")
        print(f"\nhsta: stopped{f': {hint}' if hint else ''}", file=sys.stderr)
        return 130
    return 2


def _spin_briefly() -> None:
    """PyTorch's threads spin for milliseconds while they wait for each other: beside other programs they wait for one
    that has no core, and a step takes several times as long. OpenMP reads this when PyTorch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def _run(arguments: list[str]) -> int:
    import tyro

    from .check import Check
    from .collect import Collect
    from .compare import Compare
    from .demo import Demo
    from .evaluate import Evaluate
    from .export import Export
    from .generate import Generate
    from .predict import Predict
    from .prepare import Prepare
    from .presets import expand
    from .report import Report
    from .serve import Serve
    from .shard import Shard
    from .train import Train
    from .tune import Tune

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command = tyro.extras.subcommand_cli_from_dict(
                {
                    "check": Check,
                    "generate": Generate,
                    "prepare": Prepare,
                    "shard": Shard,
                    "train": Train,
                    "tune": Tune,
                    "evaluate": Evaluate,
                    "collect": Collect,
                    "report": Report,
                    "compare": Compare,
                    "predict": Predict,
                    "serve": Serve,
                    "export": Export,
                    "demo": Demo,
                },
                prog="hsta",
                description="Micro-expression recognition with hierarchical space-time attention.",
                args=expand(arguments),
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            return 0
        raise UserError(_one_line(complaint.getvalue())) from None
    result = command.run()
    return result if isinstance(result, int) else 0


def _one_line(box: str) -> str:
    """What tyro says in a box of a title and several sections about wrong arguments, without help text."""
    sections: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines():
        line = line.removeprefix("│").removeprefix(" ").rstrip("│ ")
        if line.strip().startswith(("╭", "╰", "───", "---")):
            sections.append([])
        elif not line.startswith(8 * " ") and line.strip() not in sections[-1]:
            sections[-1].append(line.strip())
    said = [" ".join(section).rstrip(".: ") for section in sections[1:] if any(section)]
    return "; ".join(section for section in said if not section.startswith("Argument helptext"))


def _complain(message: str) -> None:
    print("hsta:", *message.split(), file=sys.stderr)

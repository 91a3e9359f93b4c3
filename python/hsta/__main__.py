"""The command line: ``hsta generate | train | evaluate | predict | demo``."""

from __future__ import annotations

import sys

from .errors import UserError

# What the extra installs, as it is imported.
FRONTEND = {
    "av",
    "cv2",
    "lightning_fabric",
    "matplotlib",
    "openpyxl",
    "pandas",
    "skimage",
    "tensorboard",
    "tqdm",
    "tyro",
}
RESUMABLE = {"train", "evaluate"}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for what the user can put right, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(arguments)
    except UserError as error:
        print(f"hsta: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in FRONTEND:
            raise
        print(f"hsta: {error.name} is not installed: pip install hsta-kernels[frontend]", file=sys.stderr)
    except KeyboardInterrupt:
        resumable = arguments and arguments[0] in RESUMABLE
        hint = ": the same command with --resume goes on from here" if resumable else ""
        print(f"\nhsta: stopped{hint}", file=sys.stderr)
        return 130
    return 2


def _run(arguments: list[str]) -> int:
    import tyro

    from .demo import Demo
    from .evaluate import Evaluate
    from .generate import Generate
    from .predict import Predict
    from .train import Train

    command = tyro.extras.subcommand_cli_from_dict(
        {
            "generate": Generate,
            "train": Train,
            "evaluate": Evaluate,
            "predict": Predict,
            "demo": Demo,
        },
        prog="hsta",
        description="Micro-expression recognition with hierarchical space-time attention.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    command.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Named lists of options: what is given after a preset on the command line overrides it."""

from __future__ import annotations

PRESETS = {
    # HSTA's authors on CAS(ME)^3 (arXiv 2405.03202, and their released training script).
    "authors-casme3": """
        --dataset casme3 --classes 7 --special frames
        --model hsta_base_224 --attention joint --image-size 224 --num-frames 6 --depth 1 2 1 2 1 2 1 2
        --epochs 150 --warmup-epochs 5 --batch-size 32 --learning-rate 5e-4 --weight-decay 0.05 --layer-decay 0.9
        --drop-rate 0.2 --drop-path-rate 0.2 --head-drop-rate 0.2 --balance auto
        --label-smoothing 0 --mixup 0 --ema-decay 0 --augment 0
    """,
    # To see that all works, on a CPU too. Its figures are not to be reported.
    "quick": """
        --model hsta_tiny_224 --image-size 112 --num-frames 4 --depth 1 1 1 1
        --epochs 20 --warmup-epochs 2 --batch-size 16 --drop-path-rate 0.1
    """,
}


def expand(arguments: list[str]) -> list[str]:
    """The arguments with a preset's options behind the command's name: of an option given twice the last counts."""
    if not arguments or arguments[0] not in ("train", "tune", "evaluate"):
        return arguments
    joined = [part for argument in arguments for part in _parted(argument)]
    if "--preset" not in joined[:-1]:
        return arguments
    options = PRESETS.get(joined[joined.index("--preset") + 1], "")  # of an unknown one the parser complains
    return [*arguments[:1], *options.split(), *arguments[1:]]


def _parted(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--preset=") else [argument]

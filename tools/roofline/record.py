"""What is kept of a run: the kernels' machine code in numbers, and what the model made of it (`predictions.json`)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton

from tools.ahead_of_time import OPERATORS, Launch, fingerprint
from tools.roofline import machine_code
from tools.roofline.cases import CASES, DTYPES, KNOWN, Case, known
from tools.roofline.kernels import Work, work_of
from tools.roofline.machine_code import Code, Span
from tools.roofline.machine_code import Path as Way
from tools.roofline.model import GPUS, Gpu, Prediction, gaps, predict, variants

FILE = Path(__file__).with_name("predictions.json")
TOLERANCE = 0.03  # by which a prediction may fall unnoticed
Codes = Mapping[str, Code]


@dataclasses.dataclass
class Row:
    """A case on a card: microseconds of a call, and the share of the roof, from worse to better assumptions.

    The share is of a copy's bandwidth, or, for attention over space and all tokens, FLOP a second.
    """

    microseconds: float
    share: float
    worse: float
    better: float
    limit: str
    launches: int


def key(launch: Launch, arch: int) -> str:
    """What a kernel is compiled for: dtypes, options, and which sizes are 1 or multiples of 16."""
    *_, dtypes, constants = launch.constants
    sizes = "".join("1" if a == 1 else "x" if a % 16 == 0 else "-" for a in launch.arguments if isinstance(a, int))
    options = " ".join(f"{name}={value}" for name, value in constants)
    return f"sm_{arch} {launch.name} {' '.join(str(d).removeprefix('torch.') for d in dtypes)} {sizes} {options}"


@functools.cache
def counted(index: int, dtype: str, arch: int) -> list[tuple[Launch, Work]]:
    """Launches of one of the CASES, with their counts."""
    return [(launch, work_of(launch, arch)) for launch in CASES[index].launches(DTYPES[dtype], arch)]


Place = tuple[int, str, int, int]  # a case's index, dtype, architecture, number of the launch; or -1 and what is KNOWN


def places() -> dict[str, tuple[Place, Launch]]:
    """Where each kernel is launched first, by its key."""
    found: dict[str, tuple[Place, Launch]] = {}
    for arch, dtype, index in itertools.product(sorted({gpu.arch for gpu in GPUS}), DTYPES, range(len(CASES))):
        for number, (launch, _) in enumerate(counted(index, dtype, arch)):
            found.setdefault(key(launch, arch), ((index, dtype, arch, number), launch))
    for head_dim in KNOWN:
        launch, _ = known(head_dim)
        found[key(launch, 90)] = (-1, "bf16", 90, head_dim), launch
    return found


def compiled(place: Place) -> Code:
    index, dtype, arch, number = place
    launch = counted(index, dtype, arch)[number][0] if index >= 0 else known(number)[0]
    return machine_code.read(launch, arch)


def known_rate(head_dim: int, codes: Codes) -> float:
    """FLOP a second that the model gives the KNOWN work on an H100."""
    gpu = next(gpu for gpu in GPUS if gpu.name == "H100")
    launch, flops = known(head_dim)
    return flops / predict(gpu, launch.programs, warps_of(launch), codes[key(launch, 90)], work_of(launch, 90)).seconds


def warps_of(launch: Launch) -> int:
    return launch.options.get("num_warps", 4)


def kernels(gpu: Gpu, index: int, dtype: str, codes: Codes) -> dict[str, tuple[Launch, Work, Code, Prediction]]:
    """Raises KeyError where the code of a kernel is not among `codes`."""
    found = {}
    for launch, work in counted(index, dtype, gpu.arch):
        code = codes[key(launch, gpu.arch)]
        prediction = predict(gpu, launch.programs, warps_of(launch), code, work)
        found[launch.name] = launch, work, code, prediction
    return found


def share(case: Case, dtype: str, gpu: Gpu, seconds: float) -> float:
    """Of what is asked: FLOP a second where the target is one, else of a copy's bandwidth."""
    if case.target > 1:
        return case.flops / seconds
    return case.elements * DTYPES[dtype].itemsize / seconds / gpu.copy


def row(gpu: Gpu, index: int, dtype: str, codes: Codes) -> Row:
    case, shares = CASES[index], []
    for card in (gpu, *variants(gpu)):
        found = kernels(card, index, dtype, codes)
        of = [prediction for *_, prediction in found.values()]
        between = gaps(card, [launch for launch, *_ in found.values()], len(case.others))
        moved = sum(case.others) * DTYPES[dtype].itemsize
        seconds = sum(prediction.seconds for prediction in of) + moved / card.copy + between
        shares.append((share(case, dtype, gpu, seconds), seconds, between, of))
    middle, seconds, between, of = shares[0]
    slowest = max(of, key=lambda prediction: prediction.seconds)
    limit = "launches" if between > seconds / 2 else slowest.limit
    launches = len(of) + len(case.others)
    return Row(round(seconds * 1e6, 2), middle, shares[1][0], shares[2][0], limit, launches)


def rows(codes: Codes) -> dict[str, Row]:
    """For every card, dtype and case."""
    return {
        f"{gpu.name} {dtype} {case.title}": row(gpu, index, dtype, codes)
        for gpu in GPUS
        for dtype in DTYPES
        for index, case in enumerate(CASES)
    }


def _code(of: dict[str, Any]) -> Code:
    paths = [Way(Span(**p["once"]), [Span(**loop) for loop in p["loops"]], p["in_flight"]) for p in of["paths"]]
    return Code(of["registers"], of["shared_memory"], of["spills"], paths)


def fingerprints() -> dict[str, str]:
    return {name: fingerprint(name) for name in OPERATORS}


def read() -> tuple[str, dict[str, str], dict[str, Code], dict[str, Row]]:
    """Triton's version, the fingerprints of the operators, their kernels' code, and the predictions."""
    kept = json.loads(FILE.read_text())
    codes = {name: _code(of) for name, of in kept["code"].items()}
    return kept["triton"], kept["kernels"], codes, {name: Row(**of) for name, of in kept["predictions"].items()}


def write(codes: Codes, predictions: Mapping[str, Row]) -> None:
    def lines(of: Mapping[str, Any]) -> str:
        return ",\n".join(f"  {json.dumps(name)}: {json.dumps(dataclasses.asdict(one))}" for name, one in of.items())

    FILE.write_text(
        f'{{\n "triton": "{triton.__version__}",\n "kernels": {json.dumps(fingerprints())},\n'
        f' "code": {{\n{lines(codes)}\n }},\n "predictions": {{\n{lines(predictions)}\n }}\n}}\n'
    )


def fallen(before: Mapping[str, Row], after: Mapping[str, Row]) -> list[str]:
    """A line for each prediction that fell by more than the tolerance."""
    return [
        f"{name}: {before[name].share:.4g} -> {now.share:.4g}, {before[name].limit} -> {now.limit}"
        for name, now in after.items()
        if name in before and now.share < before[name].share * (1 - TOLERANCE)
    ]

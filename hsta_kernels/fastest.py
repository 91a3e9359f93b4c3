"""Which product is fastest for a layer on this machine: measured once, and remembered in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from hsta_kernels.processor import processor_name
from hsta_kernels.products import PRODUCTS
from hsta_kernels.replacing import replacing

CLEARLY = 0.97  # of another time: less of a gain may be noise
MOST_ROWS = 1024  # more take as much longer, each product alike
FEWEST_ROUNDS = 4  # for a shape
MOST_ROUNDS, SECONDS = 20, 0.5  # where other programs disturb


class Fastest:
    """Called with a layer's weight, bias, activation and rows, the name of its fastest product."""

    def __init__(self) -> None:
        self.machine = _machine()
        self.file = _file(self.machine)
        self.choices = _read(self.file)

    def __call__(self, weight: Tensor, bias: Tensor | None, activation: str, rows: int) -> str:
        names = [name for name, product in PRODUCTS.items() if product.runs(weight, activation)]
        if len(names) == 1:
            return names[0]
        rows = min(rows, MOST_ROWS)
        shape = f"{rows} x {weight.shape[1]} x {weight.shape[0]}"
        layer = f"{shape} {weight.dtype} {'no bias' if bias is None else 'bias'} {activation}"
        if self.choices.get(layer) not in names:
            self.choices[layer] = _measured(names, weight, bias, activation, rows)
            self._write()
        return self.choices[layer]

    def _write(self) -> None:
        """A cache that cannot be written costs the next process a measurement."""
        if self.file is None:
            return
        content = {"machine": self.machine, "choices": _read(self.file) | self.choices}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as temporary:
                temporary.write_text(json.dumps(content, indent=1))
        except OSError:
            pass


@torch.no_grad()
def _measured(names: list[str], weight: Tensor, bias: Tensor | None, activation: str, rows: int) -> str:
    """The first in order of the products that no other is clearly faster than; in turns, fastest rounds compared."""
    x = weight.new_ones(rows, weight.shape[1])
    products = {name: PRODUCTS[name](weight, bias, activation, rows) for name in names}
    with torch.autocast("cpu", enabled=False):
        for product in products.values():  # what is allocated or compiled at the first call
            product(x)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        start = perf_counter()
        for done in range(MOST_ROUNDS):
            late = perf_counter() - start > SECONDS
            if done >= FEWEST_ROUNDS and (late or all(_settled(times) for times in seconds.values())):
                break
            for name, product in products.items():
                seconds[name].append(_seconds(product, x))
    fastest = {name: min(times) for name, times in seconds.items()}
    return next(name for name in names if CLEARLY * fastest[name] <= min(fastest.values()))


def _seconds(product: Callable[[Tensor], Tensor], x: Tensor) -> float:
    start = perf_counter()
    product(x)
    return perf_counter() - start


def _settled(seconds: list[float]) -> bool:
    """Whether the shortest time came twice, which one that another program disturbed does not."""
    shortest, second, *_ = sorted(seconds)
    return CLEARLY * second <= shortest


def _machine() -> dict[str, object]:
    """What has to be the same for a measurement to hold."""
    # Their variables limit instruction sets and threads.
    libraries = ("MKL_", "ONEDNN_", "DNNL_", "HSTA_CPU_ISA")
    return {
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "products": list(PRODUCTS),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(libraries)},
    }


def _file(machine: dict[str, object]) -> Path | None:
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.environ.get("HSTA_CACHE_DIR", os.path.join(caches, "hsta_kernels"))
    if not folder:
        return None
    name = hashlib.sha256(json.dumps(machine).encode()).hexdigest()[:16]
    return Path(folder) / f"products-{name}.json"


def _read(file: Path | None) -> dict[str, str]:
    """Choices by layer; none if the file is not there or cannot be read."""
    try:
        choices = json.loads(file.read_text())["choices"] if file else {}
        return {layer: name for layer, name in choices.items() if isinstance(name, str)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}

"""The choice among products: what the clock says, and what the cache folder keeps. Clock and products are made up."""

from __future__ import annotations

import os

import pytest
import torch

from hsta_kernels import fastest
from hsta_kernels.fastest import Fastest

WEIGHT, BIAS = torch.zeros(8, 4), torch.zeros(8)


class Bench:
    """Products that do nothing but let the clock run on, by their seconds of one call after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now, self.calls = 0.0, 0
        self.seconds: dict[str, list[float]] = {"first": [1.0], "second": [1.0], "third": [1.0]}
        monkeypatch.setattr(fastest, "PRODUCTS", {name: self.product(name) for name in self.seconds})
        monkeypatch.setattr(fastest, "perf_counter", lambda: self.now)

    def product(self, name: str) -> type:
        bench = self

        class Product:
            def __init__(self, weight, bias, activation, rows):
                self.called = 0

            def __call__(self, x):
                seconds = bench.seconds[name]
                bench.now += seconds[self.called % len(seconds)]
                self.called += 1
                bench.calls += 1

            @staticmethod
            def runs(weight, activation):
                return bool(bench.seconds[name])

        return Product


@pytest.fixture
def bench(monkeypatch, tmp_path) -> Bench:
    monkeypatch.setenv("HSTA_CACHE_DIR", str(tmp_path / "cache"))
    return Bench(monkeypatch)


def choose(rows: int = 2, activation: str = "none") -> str:
    return Fastest()(WEIGHT, BIAS, activation, rows)


@pytest.mark.parametrize(
    ("seconds", "choice"),
    [
        (([2.0], [3.0], [1.0]), "third"),
        (([3.0], [1.0], [2.0]), "second"),
        (([1.0], [0.98], [0.99]), "first"),  # no clear gain
        (([1.0], [0.9], [0.89]), "second"),
        (([2.0], [9.0, 1.0], [1.5]), "second"),  # other programs take a processor now and then
        (([1e-6], [5e-7], [1e-7, 1e-6]), "third"),
        (([5.0], [], [6.0]), "first"),
        (([], [5.0], []), "second"),
    ],
)
def test_the_fastest_is_taken(bench, seconds, choice):
    bench.seconds = dict(zip(bench.seconds, seconds, strict=True))
    assert choose() == choice


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [
        ([1.0], fastest.FEWEST_ROUNDS),
        ([1e-6], fastest.FEWEST_ROUNDS),
        ([9e-6, 5e-6, 4e-6, 3e-6, 2e-6, 1e-6, 9e-6, 1.01e-6], 7),  # until the shortest time came twice
        ([1e-3 * 2.0**-call for call in range(30)], fastest.MOST_ROUNDS),
        ([1e3 * 2.0**-call for call in range(30)], fastest.FEWEST_ROUNDS),  # too slow to wait for that
    ],
)
def test_a_measurement_ends(bench, seconds, rounds):
    bench.seconds = {"first": [1e-9], "second": seconds, "third": []}
    choose()
    assert bench.calls == 2 * (1 + rounds)


def test_what_was_measured_is_not_measured_again(bench, tmp_path):
    bench.seconds["second"] = [0.5]
    assert choose() == "second"
    bench.seconds["third"], bench.calls = [0.1], 0
    assert choose() == "second"
    assert bench.calls == 0
    assert choose(rows=3) == "third"
    assert choose(activation="gelu") == "third"
    assert choose() == "second"
    assert len(os.listdir(tmp_path / "cache")) == 1  # nothing temporary stays


def test_many_rows_are_measured_by_fewer(bench):
    bench.seconds["second"] = [0.5]
    assert choose(rows=2 * fastest.MOST_ROWS) == "second"
    bench.seconds["third"] = [0.1]
    assert choose(rows=fastest.MOST_ROWS) == choose(rows=3 * fastest.MOST_ROWS) == "second"
    assert choose(rows=fastest.MOST_ROWS - 1) == "third"


@pytest.mark.parametrize("what", ("processor", "threads", "torch", "instructions", "products", "variable", "kernels"))
def test_elsewhere_it_is_measured_anew(what, bench, monkeypatch):
    choose()
    if what == "processor":
        monkeypatch.setattr(fastest, "processor_name", lambda: "another")
    elif what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    elif what == "torch":
        monkeypatch.setattr(torch, "__version__", "2.99")
    elif what == "instructions":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    elif what == "products":
        monkeypatch.setitem(fastest.PRODUCTS, "new", fastest.PRODUCTS["first"])
        bench.seconds["new"] = [1.0]
    else:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA" if what == "variable" else "HSTA_CPU_ISA", "another")
    bench.seconds["third"] = [0.1]
    assert choose() == "third"


@pytest.mark.parametrize(
    "content",
    (
        b"", b"{", b"\xff", b"null", b"[]", b"{}", b'{"choices": 3}', b'{"choices": ["first"]}',
        b'{"choices": {"LAYER": "unheard of"}}', b'{"choices": {"LAYER": ["first"]}}',
    ),
)  # fmt: skip
def test_a_cache_that_cannot_be_read_is_measured_anew(content, bench):
    chooser = Fastest()
    chooser(WEIGHT, BIAS, "none", 2)
    (layer,) = chooser.choices
    chooser.file.write_bytes(content.replace(b"LAYER", layer.encode()))
    bench.seconds["third"] = [0.1]
    assert choose() == "third"
    bench.calls = 0
    assert choose() == "third"  # and written anew
    assert bench.calls == 0


def test_a_cache_that_cannot_be_written_is_passed_by(bench, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HSTA_CACHE_DIR", str(tmp_path / "file"))
    bench.seconds["third"] = [0.1]
    assert choose() == "third"
    monkeypatch.setenv("HSTA_CACHE_DIR", str(tmp_path))
    Fastest().file.mkdir()
    assert choose() == "third"
    assert len(os.listdir(tmp_path)) == 2


def test_an_empty_folder_name_keeps_nothing(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("HSTA_CACHE_DIR", "")
    monkeypatch.chdir(tmp_path)
    chooser = Fastest()
    assert chooser.file is None
    chooser(WEIGHT, BIAS, "none", 2)
    calls = bench.calls
    chooser(WEIGHT, BIAS, "none", 2)  # a second layer of the same shape
    assert bench.calls == calls
    choose()
    assert bench.calls == 2 * calls
    assert not os.listdir(tmp_path)


def test_the_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("HSTA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Fastest().file.parent == tmp_path / "xdg" / "hsta_kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Fastest().file.parent == tmp_path / ".cache" / "hsta_kernels"

"""``pytest benchmarks/ --benchmark-only``: options, and the table after the last test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import report
from benchmarks.cases import cases

RESULTS = pytest.StashKey[list]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hsta")
    group.addoption("--hsta-device", default="cuda" if torch.cuda.is_available() else "cpu")
    group.addoption("--hsta-shapes", choices=("default", "quick"), default="default")
    group.addoption("--hsta-seconds", type=float, default=0.4, help="measuring time for each contender of a case")
    group.addoption("--hsta-json", type=Path, default=report.HERE / "results" / "latest.json")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "make_case" in metafunc.fixturenames:
        options = metafunc.config.option
        found = list(cases(torch.device(options.hsta_device), options.hsta_shapes == "quick"))
        metafunc.parametrize("make_case", [make for _, make in found], ids=[name for name, _ in found])


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if not results:
        return
    path, device = config.option.hsta_json, torch.device(config.option.hsta_device)
    report.write_json(path, results, device)
    facts = report.machine(device)
    report.plot(path.with_suffix(".png"), results, report.title(device))
    terminalreporter.write_line(f"\n{report.table(results)}\n\n{facts}\nwritten: {path} and {path.with_suffix('.png')}")

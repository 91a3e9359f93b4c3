"""``pytest benchmarks/ --benchmark-only``: the cases of a run as tests, and the table after the last."""

from __future__ import annotations

import pytest

from benchmarks.run import Run, add_options

RUN = pytest.StashKey[Run]()


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser.getgroup("hsta").addoption)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "work" not in metafunc.fixturenames:
        return
    config = metafunc.config
    if RUN not in config.stash:
        terminal, capture = map(config.pluginmanager.getplugin, ("terminalreporter", "capturemanager"))

        def say(line: str) -> None:
            with capture.global_and_fixture_disabled():
                terminal.write_line(line)

        try:
            config.stash[RUN] = Run(config.option, say=say)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
    works = config.stash[RUN].works
    metafunc.parametrize("work", works, ids=[work.name for work in works])


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    run = config.stash.get(RUN, None)
    if run is not None and not config.option.collectonly:
        terminalreporter.write_line(f"\n{run.finish()}")

"""Every file of examples/ runs as it is: they are small, and assert what they say."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path, monkeypatch, capsys):
    for library in re.findall(r"^from (transformers|diffusers)\b", path.read_text(), re.MULTILINE):
        pytest.importorskip(library, reason=f"{library} is not installed; `make test` installs it")
    monkeypatch.chdir(tmp_path)  # for what it writes
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(path):
    assert len(path.read_text().splitlines()) < 60

"""Counted instructions: valgrind's file is read right, and what grew is flagged."""

from __future__ import annotations

import shutil

import pytest

from tools import instructions

# In main: 5 of its own and 7 after a call of the kernel, which has 100 and calls libm with 30.
DUMP = """version: 1
creator: callgrind-3.19.0
desc: Trigger: Client Request: bias_gelu-fwd-fp32
positions: line
events: Ir

ob=(1) /usr/bin/python3.11
fn=(1) main
0 5
cob=(2) /somewhere/hsta_kernels/_cpu.cpython-311-x86_64-linux-gnu.so
cfn=(2) kernel
calls=1 0
0 130
0 7

ob=(2)
fn=(2)
0 100
cob=(3) /usr/lib/libm.so.6
cfn=(3) exp
calls=10 0
* 30

ob=(3)
fn=(3)
+3 30

totals: 142
"""


def test_our_librarys_own_instructions_and_all():
    assert instructions.parse(DUMP) == ("bias_gelu-fwd-fp32", {"kernels": 100, "call": 142})


def test_the_end_of_the_process_is_no_case():
    assert instructions.parse("desc: Trigger: Program termination\n") == ("", {"kernels": 0, "call": 0})


@pytest.mark.parametrize(("kernels", "grew"), ((1000, False), (1010, False), (1011, True), (500, False)))
def test_more_than_the_tolerance_is_flagged(kernels, grew):
    before = {"a": {"kernels": 1000, "call": 2000}}
    lines, flagged = instructions.compare(
        before, {"a": {"kernels": kernels, "call": 2000}, "b": {"kernels": 1, "call": 1}}
    )
    assert flagged is grew
    assert lines[1] == "b: kernels 1 (new), call 1 (new)"
    assert f"kernels {kernels:,} ({(kernels - 1000) / 10:+.2f} %)" in lines[0]


def test_without_valgrind_it_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(RuntimeError, match="counted with valgrind, which is not installed"):
        instructions.count()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_no_operator_takes_more_instructions_than_it_did(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["instructions"])
    assert instructions.main() == 0, capsys.readouterr().out

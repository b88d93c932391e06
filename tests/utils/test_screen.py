"""Test that jobs go on when their output cannot be written, and which escape sequences it has.

pytest tests/utils/test_screen.py
"""

import io
import os
import pty
import shlex
import subprocess
import sys

import pytest

from cnnlab.cli.tables import print_backbones
from cnnlab.utils.screen import is_live, progress_bar

# Prints more than a pipe or a buffer holds, also without Python's streams, and keeps what it does in a file.
JOB = """
import os, sys
from cnnlab.utils.log import log
from cnnlab.utils.screen import output_failure, set_up_streams
set_up_streams()
with open("kept.txt", "w") as kept:
    for i in range(3):
        print(f"line {i}", "x" * 100_000)
        log.info("said")
        log.warning("warned")
        kept.write(f"{i}\\n")
    os.write(1, b"1")  # by now what is not read any more is discarded
    os.write(2, b"2")
    kept.write(repr(output_failure()))
"""


@pytest.mark.parametrize(
    ("redirection", "failure"),
    [
        ("| head -1", "None"),
        ("2>&1 | head -1", "None"),
        (">&-", "None"),
        ("2>&-", "None"),
        ("<&- >&- 2>&-", "None"),
        (">/dev/full", "OSError(28, 'No space left on device')"),
        ("2>/dev/full", "None"),
        (">/dev/full 2>&1", "OSError(28, 'No space left on device')"),
    ],
)
def test_a_job_goes_on_without_its_output(redirection, failure, tmp_path):
    command = f"set -o pipefail; {shlex.quote(sys.executable)} -c {shlex.quote(JOB)} {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
    assert (tmp_path / "kept.txt").read_text() == f"0\n1\n2\n{failure}"


def test_output_waits_for_a_reader_of_a_pipe_that_does_not_block(tmp_path):
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    job = JOB.replace("os.write(1, ", "len(")  # this would not wait
    with subprocess.Popen([sys.executable, "-c", job], stdout=writable, stderr=subprocess.DEVNULL) as process:
        os.close(writable)
        with os.fdopen(readable) as output:
            assert output.read().count("x") == 300_000
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("command", "redirection", "status"),
    [
        ("models --available", "| head -1", 0),
        ("models --available", ">/dev/full", 1),  # to print is all that it does
        ("train nothing", ">&- 2>&-", 2),
    ],
)
def test_a_command_that_only_prints_says_what_it_could_not(command, redirection, status):
    line = f"set -o pipefail; {shlex.quote(sys.executable)} -m cnnlab {command} {redirection}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == (status == 1)
    assert "No space left on device" in done.stderr or status != 1


@pytest.mark.parametrize(
    ("variables", "escapes"),
    [
        ({}, True),
        ({"NO_COLOR": ""}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_escape_sequences_on_a_terminal(variables, escapes, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        for stream in ("stdout", "stderr"):
            monkeypatch.setattr(sys, stream, terminal)
        assert is_live(sys.stdout) == escapes
        with progress_bar("bar", 2) as advance:
            advance(1)
        print_backbones()
        terminal.flush()
        shown = os.read(ours, 100_000)
    os.close(ours)
    assert b"cnn" in shown
    assert (b"\x1b" in shown) == (b"bar" in shown) == escapes


def test_a_file_and_no_stream_are_not_live(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    assert not is_live(io.StringIO())
    assert not is_live(None)
    with progress_bar("bar", 2) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")

"""The process that touches a mount may hang, fail or end; whoever waits for it goes on."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import rounds, subjects

REPOSITORY = Path(__file__).parents[2]

# The first process of a PID namespace, another that has /dev/fuse open, and a child that hangs.
HANGING = """
import subprocess, sys, time
from benchmarks import processes, rounds
other = subprocess.Popen([sys.executable, "-c", "f = open('/dev/fuse'); print(); input()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
other.stdout.readline()
assert processes.serving() == [other.pid]
print(*rounds.in_child(lambda tell: [tell("begun"), time.sleep(99)], limit_s=1), sep="; ")
assert other.wait() == -9
"""


def test_what_hangs_is_ended_with_those_who_serve_it() -> None:
    within = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    done = subprocess.run(
        [*within, sys.executable, "-c", HANGING],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("begun; no end within 1 s\n", "")


def test_a_failure_is_told_in_place_of_what_else_there_was() -> None:
    def fail(tell: Callable[[int], None]) -> None:
        tell(1)
        raise ValueError("why")

    said = list(rounds.in_child(fail))

    assert said[0] == 1
    assert said[1].endswith("ValueError: why\n")


def test_an_end_without_a_word_is_an_end() -> None:
    assert list(rounds.in_child(lambda _: os._exit(3))) == []


def test_nobody_else_is_ended() -> None:
    with pytest.raises(RuntimeError, match="anybody's"):
        subjects.kill()


def test_to_measure_outside_of_namespaces_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "python -m benchmarks" in done.stderr

"""The process that touches a mount may hang, fail or end; its parent goes on."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import rounds, subjects, work
from benchmarks.lines import Line, Site
from benchmarks.plan import Plan
from benchmarks.report import Sample

REPOSITORY = Path(__file__).parents[2]

# The first process of a PID namespace, one that has /dev/fuse open, and a child that hangs.
HANGING = """
import subprocess, sys, time
from benchmarks import processes, rounds
other = subprocess.Popen([sys.executable, "-c", "f = open('/dev/fuse'); print(); input()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
other.stdout.readline()
assert processes.serving() == [other.pid]
print(*rounds.in_child(lambda send: [send("begun"), time.sleep(99)], limit_s=1), sep="; ")
assert other.wait() == -9
"""


def test_a_child_that_hangs_is_killed_with_the_servers_of_its_mount() -> None:
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


def test_an_exception_of_the_child_is_its_last_value() -> None:
    def fail(send: Callable[[int], None]) -> None:
        send(1)
        raise ValueError("why")

    sent = list(rounds.in_child(fail))

    assert sent[0] == 1
    assert sent[1].endswith("ValueError: why\n")


def test_a_child_may_end_without_a_value() -> None:
    assert list(rounds.in_child(lambda _: os._exit(3))) == []


def line(name: str, group: str, run: Callable[[Site], int]) -> Line:
    return Line(name, group, "run", lambda _: None, run)


@pytest.mark.parametrize(
    ("group", "after"), [("data", Sample), ("work", "cannot run after 'fatal'")]
)
def test_a_line_may_kill_its_process(
    group: str, after: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SIGBUS does, which a map gets if the file system refuses its pages."""
    lines = (
        line("good", "metadata", lambda _: 1),
        line("fatal", group, lambda _: os._exit(3)),
        line("next", group, lambda _: 1),
    )
    monkeypatch.setattr(rounds, "LINES", lines)
    monkeypatch.setattr(work, "LINES", [li for li in lines if li.group == "work"])
    site = Site(str(tmp_path), str(tmp_path), str(tmp_path), [], lambda count: count)
    plan = Plan(
        passfs={},
        peers={},
        rounds=1,
        size=1,
        least_s=0,
        lines=("*",),
        busy=0,
        costs=False,
        stage=str(tmp_path),
        on_tmpfs=False,
        seed=1,
    )

    outcomes = dict(rounds.through(plan, site))

    assert isinstance(outcomes["good"], Sample)
    assert outcomes["fatal"] == "the measuring process ended in this line"
    assert outcomes["next"] == after or type(outcomes["next"]) is after


def test_outside_of_namespaces_no_process_is_killed() -> None:
    with pytest.raises(RuntimeError, match="not process 1 of a PID namespace"):
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

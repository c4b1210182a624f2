"""children.py: calls that return, fail, hang or die."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from plugin.children import Call, Failed, Silent, made, running
from tests.support.fakes.hung import HungSource
from tests.support.tools.processes import wait_until

HUNG = """
import sys, time
from plugin.children import Call, Silent, made
try:
    made(Call(lambda: time.sleep(1000), int, 0.1))
except Silent as silence:
    print(silence)
"""


def hang() -> int:
    time.sleep(1000)
    return 0


def broken() -> int:
    raise ValueError("a bug")


def test_the_result_of_a_call_comes_back() -> None:
    assert made(Call(os.getpid, int, 10)) != os.getpid()


def test_a_large_result_comes_back_whole() -> None:
    text = "x" * (1 << 20)
    assert made(Call(lambda: text, str, 10)) == text


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda: os.listdir("/missing"), "/missing: No such file or directory"),
        (lambda: os.fstat(-1), "Bad file descriptor"),
        (broken, "please report this error: ValueError('a bug')"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process of the check was killed"),
    ],
)
def test_a_call_that_fails_has_a_reason(function: Callable[[], object], reason: str) -> None:
    with pytest.raises(Failed) as failed:
        made(Call(function, str, 10))
    assert str(failed.value) == reason


def test_a_call_that_hangs_ends_at_its_limit_and_with_its_own_children(tmp_path: Path) -> None:
    def wait_for_another() -> None:
        with subprocess.Popen(["sleep", "1000"]) as process:
            (tmp_path / "pid").write_text(str(process.pid))

    began = time.monotonic()
    with pytest.raises(Silent, match=r"no answer within 3 s"):
        made(Call(wait_for_another, type(None), 3.0))
    assert time.monotonic() - began < 20
    inner = int((tmp_path / "pid").read_text())
    wait_until(lambda: is_gone(inner))


def is_gone(pid: int) -> bool:
    """Return whether a process has ended; a zombie counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_call_that_hangs_delays_no_other_one() -> None:
    began = time.monotonic()
    calls = [Call(hang, int, 1.0), Call(os.getppid, int, 10.0)]
    with running(calls) as (hung, quick):
        assert quick.result() == os.getpid()
        with pytest.raises(Silent):
            hung.result()
    assert time.monotonic() - began < 5


def test_a_call_that_hangs_in_a_file_system_is_left_behind(tmp_path: Path) -> None:
    with HungSource(tmp_path), pytest.raises(Silent):
        made(Call(lambda: os.stat(tmp_path / "name").st_size, int, 0.5))


def test_the_reader_of_the_output_does_not_wait_for_a_call_that_hangs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HUNG], capture_output=True, text=True, timeout=30, check=True
    )
    assert (done.stdout, done.stderr) == ("no answer within 0.1 s\n", "")

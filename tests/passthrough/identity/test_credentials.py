import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from passthrough.identity.credentials import drop_groups, keep_capabilities
from tests.support.tools.callers import Call
from tests.support.tools.host_calls import setfsuid

REPOSITORY = Path(__file__).resolve().parents[3]
CALLER = 41_001
LIMIT_S = 30.0


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """Yield the descriptor of a directory of root alone."""
    tmp_path.chmod(0o700)
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


def in_thread(function: Callable[[], object]) -> object:
    """Call *function* in a new thread, because securebits stay with their thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(LIMIT_S)


@pytest.mark.parametrize("keeping", [True, False])
def test_with_kept_capabilities_the_host_does_not_check_again(
    keeping: bool, directory: int
) -> None:
    def create() -> str:
        if keeping:
            keep_capabilities()
        setfsuid(CALLER)
        try:
            os.mkdir("theirs", dir_fd=directory)
        except PermissionError:
            return "refused"
        return "created"

    assert in_thread(create) == ("created" if keeping else "refused")


def test_keeping_capabilities_needs_cap_setpcap() -> None:
    code = "from passthrough.identity.credentials import *; keep_capabilities()"

    ended = subprocess.run(
        ["setpriv", "--bounding-set", "-setpcap", sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert ended.returncode == 1
    assert "PermissionError: [Errno 1]" in ended.stderr


def test_supplementary_groups_are_dropped() -> None:
    def run() -> list[int]:
        os.setgroups([7, 8])
        drop_groups()
        return os.getgroups()

    with Call(run, lambda: None) as call:
        assert call.result(LIMIT_S) == []


def test_supplementary_groups_that_cannot_be_dropped_are_an_error() -> None:
    def run() -> str:
        os.setgroups([7, 8])
        os.setresuid(41_001, 41_001, 41_001)
        with pytest.raises(PermissionError) as caught:
            drop_groups()
        return str(caught.value.strerror)

    with Call(run, lambda: None) as call:
        assert "option 'squash'" in call.result(LIMIT_S)

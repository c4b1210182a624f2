"""The system calls that a worker makes to look a new name up."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools.mounted import mounted
from tests.support.tools.system_calls import counting

LIMIT_S = 60.0
NAMES = 10
LOOKUPS = 1000
# The kernel remembers directories, and sends LOOKUP for any other name.
OPTIONS = {
    "session": "kernel",
    "entry_timeout": "0",
    **dict.fromkeys(("attr_timeout", "dir_entry_timeout", "dir_attr_timeout"), "60"),
}
MAKES: dict[str, Callable[[Path], object]] = {
    "mkdirat": os.mkdir,
    "mknodat": os.mkfifo,
    "symlinkat": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("call", MAKES)
def test_a_new_file_is_opened_without_a_look_for_a_known_one(base: Path, call: str) -> None:
    """While lookups mostly find known files, a lookup begins with statx(2)."""
    with mounted(base, OPTIONS) as served, served.limited(LIMIT_S):
        (served.source / "known").touch()
        for _ in range(LOOKUPS):
            (served.mountpoint / "known").stat()
        with counting(served.worker_pid, {call, "statx", "openat2"}) as calls:
            for number in range(NAMES):
                MAKES[call](served.mountpoint / f"new-{number}")

            # One of both for the LOOKUP before, which finds nothing, and openat2(2) for the file.
            found = calls()
            assert found[call] == NAMES
            assert found["statx"] + found["openat2"] == 2 * NAMES


def test_a_link_needs_no_descriptor(base: Path) -> None:
    with mounted(base, OPTIONS | {"entry_timeout": "60"}) as served, served.limited(LIMIT_S):
        (served.source / "known").touch()
        (served.mountpoint / "known").stat()
        with counting(served.worker_pid, {"linkat", "openat2"}) as calls:
            for number in range(NAMES):
                os.link(served.mountpoint / "known", served.mountpoint / f"new-{number}")

            # LOOKUP may begin with openat2(2), which finds nothing.
            found = calls()
            assert found["linkat"] == NAMES
            assert found["openat2"] <= NAMES

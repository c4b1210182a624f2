"""Checks that tests of several rooms share."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def fails(number: int, operation: Callable[[], object]) -> None:
    """Expect that *operation* raises OSError with errno *number*."""
    with pytest.raises(OSError, match=r"\[Errno") as failed:
        operation()
    assert errno.errorcode[failed.value.errno or 0] == errno.errorcode[number]


def descriptors_below(directory: Path) -> set[int]:
    """Return this process's descriptors of *directory* and of files below it."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = Path(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if target.is_relative_to(directory):
            found.add(int(name))
    return found

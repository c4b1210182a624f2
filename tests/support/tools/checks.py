"""Checks that tests of several rooms share."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools.processes import descriptors


def fails(number: int, operation: Callable[[], object]) -> None:
    """Expect that *operation* raises OSError with errno *number*."""
    with pytest.raises(OSError, match=r"\[Errno") as failed:
        operation()
    assert errno.errorcode[failed.value.errno or 0] == errno.errorcode[number]


def descriptors_below(directory: Path) -> set[int]:
    """Return this process's descriptors of *directory* and of files below it."""
    return {fd for fd, path in descriptors().items() if Path(path).is_relative_to(directory)}

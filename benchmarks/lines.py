"""What a line is, and the place that it works in."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks import processes
from passthrough.linux import syscalls

# statvfs(3) names the same flags as mount(2), but for this one.
_ST_RELATIME = 4096
_SAME_FLAGS = 1 | 2 | 4 | 8 | 1024 | 2048
_MS_REMOUNT = 32


class Place(NamedTuple):
    """Where a line works, for one subject."""

    source: str
    """The directory underneath, to prepare things in without the subject's help."""
    mount: str
    """The same directory through the subject; of the bare one, itself."""
    scratch: str
    """A directory that is no part of either."""
    servers: Sequence[int]
    """The processes that serve the mount."""
    scaled: Callable[[int], int]

    def drop(self) -> None:
        """Make the kernel forget every name, attribute and page of the mount, and of no other.

        To remount does that, reconfigure_super() in the kernel's fs/super.c; the flags stay. The
        bare directory is left alone: of a tmpfs there is nothing colder than its memory.
        """
        if self.mount != self.source:
            given = os.statvfs(self.mount).f_flag
            flags = given & _SAME_FLAGS | (syscalls.MS_RELATIME if given & _ST_RELATIME else 0)
            syscalls.mount(b"none", os.fsencode(self.mount), b"", flags | _MS_REMOUNT, b"")
            processes.settle(self.servers)  # they are told of everything that was forgotten


class Line(NamedTuple):
    """Something to measure."""

    name: str
    group: str
    operation: str
    prepare: Callable[[Place], object]
    """Called before each repetition, outside of the measured time."""
    run: Callable[[Place], int]
    """Does it, and says how many operations that were."""


def cold(prepare: Callable[[Place], object]) -> Callable[[Place], object]:
    """Prepare, then have the mount forget."""

    def prepare_and_drop(at: Place) -> None:
        prepare(at)
        at.drop()

    return prepare_and_drop


def warm(
    prepare: Callable[[Place], object], run: Callable[[Place], int]
) -> Callable[[Place], object]:
    """Prepare, then do it once unmeasured."""

    def prepare_and_run(at: Place) -> None:
        prepare(at)
        run(at)

    return prepare_and_run

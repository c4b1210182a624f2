"""A line, and the directories in which it runs."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks import processes
from benchmarks.requests import Count, uncounted
from passthrough.linux import syscalls

# statvfs(3) has the flags of mount(2), except for this one.
_ST_RELATIME = 4096
_SAME_FLAGS = 1 | 2 | 4 | 8 | 1024 | 2048
_MS_REMOUNT = 32


class Site(NamedTuple):
    """The directories and processes of one subject."""

    source: str
    """The source directory. A subject with a cache of its own sees changes there late or never."""
    mount: str
    """The mount point of the subject. For the bare directory, the source."""
    scratch: str
    """A directory outside of the source and the mount."""
    servers: Sequence[int]
    """The processes that serve the mount."""
    scaled: Callable[[int], int]
    requests: Count = uncounted
    """Returns the number of requests that the kernel has sent to the subject."""

    def drop(self) -> None:
        """Make the kernel forget every name, attribute and page of this mount alone.

        A remount does that (reconfigure_super() in the kernel's fs/super.c) and keeps the flags.
        The bare directory is left alone: a tmpfs has nothing colder than its memory.
        """
        if self.mount != self.source:
            given = os.statvfs(self.mount).f_flag
            flags = given & _SAME_FLAGS | (syscalls.MS_RELATIME if given & _ST_RELATIME else 0)
            syscalls.mount(b"none", os.fsencode(self.mount), b"", flags | _MS_REMOUNT, b"")
            processes.settle(self.servers)  # they receive a FORGET for each inode


class Line(NamedTuple):
    """One workload to measure."""

    name: str
    group: str
    operation: str
    """The unit that `run` counts, such as file, MiB or run."""
    prepare: Callable[[Site], object]
    """Called before each repetition, outside of the measured time."""
    run: Callable[[Site], int]
    """Runs the workload, and returns the number of operations."""


def cold(prepare: Callable[[Site], object]) -> Callable[[Site], object]:
    """Return a preparation that drops the caches of the mount at its end."""

    def prepare_and_drop(at: Site) -> None:
        prepare(at)
        at.drop()

    return prepare_and_drop


def warm(prepare: Callable[[Site], object], run: Callable[[Site], int]) -> Callable[[Site], object]:
    """Return a preparation that runs the workload once, unmeasured."""

    def prepare_and_run(at: Site) -> None:
        prepare(at)
        run(at)

    return prepare_and_run

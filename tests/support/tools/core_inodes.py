"""Probes of inodes in use, and a stand-in for the Python that the core calls."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from passthrough.linux import mountinfo
from tests.passthrough.core.probe_inodes import Probe

ROOT: Final = 1
LIMIT_S: Final = 60.0
ALL_HITS: Final = 0xFFFF_FFFF
BY_DESCRIPTOR: Final = 1 << 60
"""A budget for all inodes."""


class Python:
    """Stands for passthrough/session/rare.py."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, int, bytes]] = []

    def report(self, kind: int, number: int, name: bytes) -> None:
        """Keep a report."""
        self.reports.append((kind, number, name))

    def open_across(self, directory_fd: int, name: bytes) -> int:
        """Open what is mounted on *name*."""
        return mountinfo.open_mounted(directory_fd, name)


class Serve(Protocol):
    """Makes a probe of the source."""

    def __call__(
        self,
        *,
        budget: int = BY_DESCRIPTOR,
        handles: bool = True,
        hides: bool = False,
        statx_first: bool = False,
        lacks_owners: bool = False,
        places: int = 512,
    ) -> Probe: ...


def serving(source: Path, python: Python) -> Iterator[Serve]:
    """Give a maker of probes; at the end each is closed, and leaves no descriptor."""
    before = open_descriptors()
    probes = []

    def serve(**options: int) -> Probe:
        probes.append(Probe(os.fsencode(source), python, **options))  # type: ignore[arg-type]
        return probes[-1]

    yield serve
    for probe in probes:
        probe.close()
    assert open_descriptors() == before


def open_descriptors() -> int:
    """Return how many there are."""
    return len(os.listdir("/proc/self/fd"))


def number_of(probe: Probe, *path: bytes) -> int:
    """Look names up, one below the other; return the nodeid of the last."""
    nodeid = ROOT
    for name in path:
        nodeid = probe.find(nodeid, name)[0]
    return nodeid


def lookups(probe: Probe, nodeid: int) -> int:
    """Return how many lookups of an inode are counted."""
    return int((probe.inode(nodeid) or {"lookups": 0})["lookups"])

"""Fixtures of the tests of mounts without Docker."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from tests.support.tools.mounts import mounts_at
from tests.support.tools.standalone import own_records


@pytest.fixture(autouse=True)
def _own_records() -> Iterator[None]:
    """Leave no record on the machine."""
    with own_records():
        yield


@pytest.fixture
def source(base: Path) -> Path:
    """Return a directory that all users may write to, with one file."""
    path = base / "source"
    path.mkdir()
    path.chmod(0o777)
    (path / "file").write_text("below")
    return path


@pytest.fixture
def mountpoint(base: Path) -> Iterator[Path]:
    """Return an empty directory that all users reach; a mount that is left is aborted."""
    path = base / "mountpoint"
    path.mkdir()
    yield path
    for _ in mounts_at(path):
        syscalls.umount2(os.fsencode(path), syscalls.MNT_DETACH | syscalls.MNT_FORCE)

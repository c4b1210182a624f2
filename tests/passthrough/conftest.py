"""Fixtures of several rooms: a source, the file system over it, and a mount point."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.identity.attributes import Entry
from passthrough.linux import syscalls
from tests.support.tools.mounts import mounts_at
from tests.support.tools.options import effective


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return an empty directory that all users may write to."""
    path = tmp_path / "source"
    path.mkdir()
    path.chmod(0o777)
    return path


class _Counting:
    """PassthroughFs that collects the inode number of each entry that it returns."""

    def __init__(self, fs: PassthroughFs) -> None:
        self.__fs = fs
        self.delivered: list[int] = []

    def __getattr__(self, name: str) -> object:
        attribute: object = getattr(self.__fs, name)
        if not callable(attribute):
            return attribute
        return lambda *args, **kwargs: self._collected(attribute(*args, **kwargs))

    def _collected(self, result: object) -> object:
        if isinstance(result, Entry):
            self.delivered.append(result.inode_number)
        elif isinstance(result, tuple):
            for part in result:
                self._collected(part)
        elif isinstance(result, Iterator):
            return map(self._collected, result)
        return result


@pytest.fixture
def fs(source: Path) -> Iterator[PassthroughFs]:
    """Return the operations on *source*, without a mount.

    Each entry that a test gets is one lookup. When all are forgotten, the root alone remains.
    """
    fs = PassthroughFs(effective(), os.open(source, os.O_PATH | os.O_DIRECTORY))
    counting = _Counting(fs)
    yield cast("PassthroughFs", counting)
    for number in counting.delivered:
        fs.forget(number, 1)
    remaining = [len(fs.inodes), fs.inodes.root.lookups]
    fs.close()

    assert remaining == [1, 1]


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """Return an empty directory; mounts that a test leaves on it are aborted and detached."""
    path = tmp_path / "mountpoint"
    path.mkdir()
    yield path
    for _ in mounts_at(path):
        syscalls.umount2(os.fsencode(path), syscalls.MNT_DETACH | syscalls.MNT_FORCE)

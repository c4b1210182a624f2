"""What several modules' tests need: a file system over a directory, and a place to mount."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.identity.attributes import Entry
from passthrough.linux import syscalls
from passthrough.options.config import Config
from tests.support.tools.mounts import mounts_at


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty directory that everybody may write to."""
    path = tmp_path / "source"
    path.mkdir()
    path.chmod(0o777)
    return path


class _Counting:
    """PassthroughFs that notes the inode number of every entry that its callers are given."""

    def __init__(self, fs: PassthroughFs) -> None:
        self.__fs = fs
        self.delivered: list[int] = []

    def __getattr__(self, name: str) -> object:
        attribute: object = getattr(self.__fs, name)
        if not callable(attribute):
            return attribute
        return lambda *args, **kwargs: self._noted(attribute(*args, **kwargs))

    def _noted(self, result: object) -> object:
        if isinstance(result, Entry):
            self.delivered.append(result.inode_number)
        elif isinstance(result, tuple):
            for part in result:
                self._noted(part)
        elif isinstance(result, Iterator):
            return map(self._noted, result)
        return result


@pytest.fixture
def fs(source: Path) -> Iterator[PassthroughFs]:
    """The operations on *source*, without a mount.

    Each entry that a test is given counts once; giving them all back leaves the root alone.
    """
    fs = PassthroughFs(Config(), os.open(source, os.O_PATH | os.O_DIRECTORY))
    counting = _Counting(fs)
    yield cast("PassthroughFs", counting)
    for number in counting.delivered:
        fs.forget(number, 1)
    left = [len(fs.inodes), fs.inodes.root.lookups]
    fs.close()

    assert left == [1, 1]


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """An empty directory; whatever a test leaves mounted on it is aborted and taken away."""
    path = tmp_path / "mountpoint"
    path.mkdir()
    yield path
    for _ in mounts_at(path):
        syscalls.umount2(os.fsencode(path), syscalls.MNT_DETACH | syscalls.MNT_FORCE)

"""Fixtures of several rooms: a source and a mount point."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from tests.passthrough.core.probe_steps import BUILT
from tests.support.tools.core_builds import CORE, ROOT, Build
from tests.support.tools.disks import ext4
from tests.support.tools.mounts import mounts_at


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return an empty directory that all users may write to."""
    path = tmp_path / "source"
    path.mkdir()
    path.chmod(0o777)
    return path


@pytest.fixture
def on_ext4(source: Path) -> Iterator[None]:
    """Have *source* on ext4, which reuses inode numbers and knows all modes of fallocate(2)."""
    with ext4(source):
        source.chmod(0o777)
        yield


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """Return an empty directory; mounts that a test leaves on it are aborted and detached."""
    path = tmp_path / "mountpoint"
    path.mkdir()
    yield path
    for _ in mounts_at(path):
        syscalls.umount2(os.fsencode(path), syscalls.MNT_DETACH | syscalls.MNT_FORCE)


@pytest.fixture(scope="session")
def steps_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a build of the kind `steps`: this checkout, if it is one."""
    if BUILT:
        return ROOT
    target = tmp_path_factory.mktemp("steps") / "build"
    target.mkdir()
    Build(target, "steps", *CORE, "steps")
    return target

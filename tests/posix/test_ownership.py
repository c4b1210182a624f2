"""Owners of new files, created by root, two users, and a member of a supplementary group."""

import functools
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools.callers import (
    MEMBER,
    OTHER,
    ROOT,
    TEAM_GID,
    USER,
    Caller,
    attempt,
    together,
)
from tests.support.tools.files import MAKERS, owner
from tests.support.tools.host_calls import setfsgid, setfsuid

pytestmark = pytest.mark.privileged


every_caller = pytest.mark.parametrize(
    "caller", [ROOT, USER, MEMBER], ids=lambda caller: caller.name
)


make_anything = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@every_caller
@make_anything
def test_new_names_belong_to_the_caller(
    directory: Path, beneath: Path, caller: Caller, make: Callable[[Path], object]
) -> None:
    """A new file has the caller's user and group id, also on the host: open(2), mkdir(2)."""
    directory.chmod(0o777)
    caller.run(lambda: make(directory / "name") and None)

    assert owner(directory / "name") == (caller.uid, caller.gid)
    assert owner(beneath / "name") == (caller.uid, caller.gid)


@every_caller
def test_opening_does_not_change_the_owner(directory: Path, caller: Caller) -> None:
    """Opening, writing and truncating an existing file keep its owner: open(2)."""
    path = directory / "file"
    path.touch()
    path.chmod(0o666)
    os.chown(path, OTHER.uid, OTHER.gid)
    caller.run(lambda: path.write_text("content"))

    assert owner(path) == (OTHER.uid, OTHER.gid)


@make_anything
def test_setgid_directory_passes_its_group_on(
    directory: Path, make: Callable[[Path], object]
) -> None:
    """New files in a setgid directory get its group, new directories also its bit: inode(7)."""
    os.chown(directory, -1, TEAM_GID)
    directory.chmod(0o2777)
    USER.run(lambda: make(directory / "name") and None)

    assert owner(directory / "name") == (USER.uid, TEAM_GID)
    status = (directory / "name").lstat()
    assert bool(status.st_mode & stat.S_ISGID) == stat.S_ISDIR(status.st_mode)


@make_anything
def test_a_supplementary_group_may_create_in_its_directory(
    directory: Path, make: Callable[[Path], object]
) -> None:
    """Write permission through a supplementary group is enough to create: path_resolution(7)."""
    os.chown(directory, ROOT.uid, TEAM_GID)
    directory.chmod(0o2775)

    MEMBER.run(lambda: make(directory / "name") and None)
    assert owner(directory / "name") == (MEMBER.uid, TEAM_GID)
    assert attempt(USER, lambda: make(directory / "other")) == "EACCES"


def make_many(directory: Path, caller: Caller, count: int) -> None:
    """Make files, directories and symlinks, each with the ids of its owner in its name."""
    for number in range(count):
        path = directory / f"{caller.uid} {caller.gid} {number}"
        (Path.touch, Path.mkdir, lambda new: new.symlink_to("x"))[number % 3](path)


def make_as_thread(directory: Path, caller: Caller, count: int) -> None:
    """Make files with the ids of *caller* in this thread alone."""
    setfsgid(caller.gid)
    setfsuid(caller.uid)
    make_many(directory, caller, count)


def owners_are_right(directory: Path) -> bool:
    """Return whether each file of `make_many` has the owner in its name."""
    return all(
        path.name.split()[:2] == [str(number) for number in owner(path)]
        for path in directory.iterdir()
    )


def test_owners_of_concurrent_processes_are_right(directory: Path, beneath: Path) -> None:
    """If several users create files at once, each file has its creator's ids: credentials(7)."""
    directory.chmod(0o777)
    callers, count = [ROOT, USER, OTHER, MEMBER], 90
    together(
        caller.start(functools.partial(make_many, directory, caller, count)) for caller in callers
    )

    assert len(os.listdir(directory)) == len(callers) * count
    assert owners_are_right(directory)
    assert owners_are_right(beneath)


def test_owners_of_concurrent_threads_are_right(directory: Path, beneath: Path) -> None:
    """Threads of one process create files with ids of their own: setfsuid(2)."""
    directory.chmod(0o777)
    callers, count = [USER, OTHER, ROOT], 60

    def make_in_threads() -> None:
        threads = [
            threading.Thread(target=make_as_thread, args=(directory, caller, count))
            for caller in callers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ROOT.run(make_in_threads)

    assert len(os.listdir(directory)) == len(callers) * count
    assert owners_are_right(directory)
    assert owners_are_right(beneath)

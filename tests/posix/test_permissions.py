"""Permissions of users and groups. Each test chooses its callers itself."""

import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.linux.syscalls import renameat2
from tests.support.tools.callers import MEMBER, OTHER, ROOT, TEAM_GID, USER, Caller, attempt
from tests.support.tools.files import owner
from tests.support.tools.host_calls import RENAME_EXCHANGE

pytestmark = pytest.mark.privileged


def test_supplementary_group_counts_for_everything(directory: Path) -> None:
    """A member of a supplementary group has the permissions of the group: credentials(7)."""
    path = directory / "file"
    path.write_text("the team's")
    os.chown(path, ROOT.uid, TEAM_GID)
    path.chmod(0o660)

    assert MEMBER.run(path.read_text) == "the team's"
    MEMBER.run(lambda: path.write_text("changed"))
    assert path.read_text() == "changed"
    assert attempt(USER, path.read_text) == "EACCES"
    assert attempt(USER, lambda: path.write_text("x")) == "EACCES"


@pytest.mark.parametrize("caller", [USER, MEMBER, OTHER, ROOT], ids=lambda caller: caller.name)
def test_permission_bits(directory: Path, caller: Caller) -> None:
    """One class of bits applies, to open(2) and access(2) alike: path_resolution(7).

    It is the owner's, the group's, or that of all others.
    """
    path = directory / "file"
    path.write_text("content")
    os.chown(path, USER.uid, TEAM_GID)
    for mode in (0o000, 0o400, 0o040, 0o004, 0o200, 0o020, 0o002, 0o640, 0o751):
        path.chmod(mode)
        bits = mode >> {USER: 6, MEMBER: 3}.get(caller, 0) & 0o7
        if caller is ROOT:
            bits = 0o6 | (0o1 if mode & 0o111 else 0)

        for wanted in (os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK):
            allowed = caller.run(functools.partial(os.access, path, wanted))
            assert allowed == (bits & wanted == wanted)
        reading = attempt(caller, path.read_text)
        writing = attempt(caller, lambda: os.truncate(path, 1))
        assert reading == ("allowed" if bits & os.R_OK else "EACCES")
        assert writing == ("allowed" if bits & os.W_OK else "EACCES")


@pytest.mark.parametrize(
    ("mode", "listing", "searching", "making"),
    [
        (0o700, "EACCES", "EACCES", "EACCES"),
        (0o704, "allowed", "EACCES", "EACCES"),
        (0o701, "EACCES", "allowed", "EACCES"),
        (0o702, "EACCES", "EACCES", "EACCES"),
        (0o703, "EACCES", "allowed", "allowed"),
        (0o705, "allowed", "allowed", "EACCES"),
    ],
)
def test_directory_bits(
    directory: Path, mode: int, listing: str, searching: str, making: str
) -> None:
    """Listing needs the read bit, searching execute, changing write and execute: inode(7)."""
    inner = directory / "inner"
    inner.mkdir()
    (inner / "file").touch()
    (inner / "file").chmod(0o666)
    inner.chmod(mode)

    assert attempt(USER, lambda: os.listdir(inner)) == listing
    assert attempt(USER, (inner / "file").read_text) == searching
    assert attempt(USER, (inner / "new").mkdir) == making
    assert attempt(USER, lambda: (inner / "file").rename(inner / "moved")) == making


def test_permission_is_checked_when_opening(directory: Path) -> None:
    """A descriptor keeps its access mode when the file's mode changes: open(2)."""
    path = directory / "file"
    path.write_text("content")
    path.chmod(0o644)

    os.chown(path, USER.uid, USER.gid)

    def read_without_permission() -> str:
        with path.open() as file:
            path.chmod(0o000)
            return file.read()

    assert USER.run(read_without_permission) == "content"
    assert attempt(USER, path.read_text) == "EACCES"


OWNERS_CALLS: dict[str, tuple[Callable[[Path], object], str]] = {
    "chmod": (lambda path: path.chmod(0o777), "EPERM"),
    "chown": (lambda path: os.chown(path, os.getuid(), os.getgid()), "EPERM"),
    "set times": (lambda path: os.utime(path, (1, 1)), "EPERM"),
    "setxattr": (lambda path: os.setxattr(path, "user.x", b"y"), "EACCES"),
    "truncate": (lambda path: os.truncate(path, 0), "EACCES"),
    "times now": (os.utime, "EACCES"),
}


@pytest.mark.parametrize(("call", "error"), OWNERS_CALLS.values(), ids=OWNERS_CALLS.keys())
def test_only_the_owner_changes_attributes(
    directory: Path, call: Callable[[Path], object], error: str
) -> None:
    """Only the owner may set mode, owner and times: chmod(2), chown(2), utimensat(2)."""
    path = directory / "file"
    path.write_text("content")
    path.chmod(0o644)
    os.chown(path, USER.uid, USER.gid)
    before = path.stat()
    assert attempt(OTHER, lambda: call(path)) == error
    assert path.stat() == before
    assert path.read_text() == "content"

    assert attempt(USER, lambda: call(path)) == "allowed"


def test_write_permission_allows_setting_times_to_now(directory: Path) -> None:
    """Write permission allows setting both times to now, and to no other value: utimensat(2)."""
    path = directory / "file"
    path.touch()
    path.chmod(0o666)
    os.utime(path, (1, 1))

    assert attempt(USER, lambda: os.utime(path, (2, 2))) == "EPERM"
    assert path.stat().st_mtime == 1
    assert attempt(USER, lambda: os.utime(path)) == "allowed"
    assert path.stat().st_mtime > 2


@pytest.mark.parametrize(
    ("caller", "gid", "result"),
    [(MEMBER, TEAM_GID, "allowed"), (MEMBER, OTHER.gid, "EPERM"), (USER, TEAM_GID, "EPERM")],
    ids=["own supplementary", "foreign", "supplementary of another user"],
)
def test_owner_changes_the_group(directory: Path, caller: Caller, gid: int, result: str) -> None:
    """The owner may set the group to one of its own groups, and never the owner: chown(2)."""
    path = directory / "file"
    path.touch()
    os.chown(path, caller.uid, caller.gid)

    assert attempt(caller, lambda: os.chown(path, -1, gid)) == result
    assert attempt(caller, lambda: os.chown(path, OTHER.uid, -1)) == "EPERM"
    assert owner(path) == (caller.uid, gid if result == "allowed" else caller.gid)


def test_chmod_by_an_owner_outside_the_group_loses_setgid(directory: Path) -> None:
    """An owner that is not in the file's group cannot set the setgid bit: chmod(2)."""
    path = directory / "file"
    path.touch()
    os.chown(path, USER.uid, TEAM_GID)
    USER.run(lambda: path.chmod(0o2755))
    assert stat.S_IMODE(path.stat().st_mode) == 0o755

    os.chown(path, MEMBER.uid, TEAM_GID)
    MEMBER.run(lambda: path.chmod(0o2755))
    assert stat.S_IMODE(path.stat().st_mode) == 0o2755


def write(path: Path) -> None:
    """Write one byte, without truncating."""
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, b"x")
    os.close(descriptor)


LOSING: dict[str, Callable[[Path], object]] = {
    "write": write,
    "truncate": lambda path: os.truncate(path, 1),
    "open truncating": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
}


@pytest.mark.parametrize("change", LOSING.values(), ids=LOSING.keys())
def test_changed_content_clears_suid_and_sgid(
    directory: Path, change: Callable[[Path], object]
) -> None:
    """A change of content clears the set-id bits: write(2), truncate(2)."""
    path = directory / "program"
    path.write_text("content")
    os.chown(path, OTHER.uid, OTHER.gid)
    path.chmod(0o6777)
    USER.run(lambda: change(path) and None)

    assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_sticky_directory(directory: Path) -> None:
    """In a sticky directory only a name's owner removes or renames it: unlink(2), rename(2)."""
    directory.chmod(0o1777)
    path = directory / "file"
    path.touch()
    path.chmod(0o666)
    os.chown(path, USER.uid, USER.gid)
    (directory / "mine").touch()
    os.chown(directory / "mine", OTHER.uid, OTHER.gid)

    refusals = [
        attempt(OTHER, path.unlink),
        attempt(OTHER, lambda: path.rename(directory / "new")),
        attempt(OTHER, lambda: (directory / "mine").rename(path)),
        attempt(
            OTHER,
            lambda: renameat2(-1, bytes(directory / "mine"), -1, bytes(path), RENAME_EXCHANGE),
        ),
    ]
    assert set(refusals) <= {"EPERM", "EACCES"}
    assert owner(path) == (USER.uid, USER.gid)
    assert attempt(USER, lambda: path.rename(directory / "new")) == "allowed"
    assert attempt(USER, (directory / "new").unlink) == "allowed"


def test_search_permission_of_the_path(directory: Path) -> None:
    """Each directory of the path must be searchable, and a chmod takes effect at once."""
    (directory / "inner").mkdir()
    (directory / "inner" / "file").write_text("content")
    path = directory / "inner" / "file"
    assert attempt(USER, path.read_text) == "allowed"
    (directory / "inner").chmod(0o700)
    assert attempt(USER, path.read_text) == "EACCES"
    (directory / "inner").chmod(0o755)
    assert attempt(USER, path.read_text) == "allowed"


def test_execution(directory: Path) -> None:
    """A user may run a script only with the execute bit, else EACCES: execve(2)."""
    path = directory / "script"
    path.write_text("#!/bin/sh\nexit 7\n")
    path.chmod(0o754)
    os.chown(path, ROOT.uid, TEAM_GID)

    def run() -> int:
        return os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(path, [str(path)], {}), 0)[1])

    assert ROOT.run(run) == MEMBER.run(run) == 7
    assert attempt(USER, run) == "EACCES"


def test_creator_may_write_to_a_read_only_file_once(directory: Path) -> None:
    """The creating descriptor may write, even if the file's mode forbids it: open(2)."""
    directory.chmod(0o777)

    def make() -> int:
        descriptor = os.open(directory / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400)
        return os.write(descriptor, b"content")

    assert USER.run(make) == len(b"content")
    assert attempt(USER, lambda: (directory / "file").write_text("again")) == "EACCES"

"""The operations on attributes, extended ones included."""

import errno
import os
import stat
from pathlib import Path

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.inodes import ROOT
from passthrough.identity.attributes import Changes
from passthrough.identity.idmap import Caller, ContainerId
from passthrough.linux import syscalls
from tests.support.tools.direct import CALLER, caller, fails, listing, number_of
from tests.support.tools.options import effective


def test_setattr_without_changes_changes_nothing(fs: PassthroughFs, source: Path) -> None:
    (source / "file").write_bytes(b"content")
    number = number_of(fs, b"file")
    before = (source / "file").stat()

    after = fs.setattr(number, Changes())

    assert after.stat == before == (source / "file").stat()
    assert after.stat.st_ctime_ns == before.st_ctime_ns


STEPS = ("chmod", "chown", "ftruncate", "utimensat")


@pytest.mark.parametrize("through_handle", [True, False])
def test_setattr_goes_by_mode_owner_size_times(
    fs: PassthroughFs, source: Path, through_handle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "file").write_bytes(b"content")
    number = number_of(fs, b"file")
    handle = fs.open(number, os.O_RDWR)
    done: list[str] = []
    for name in STEPS:
        module = syscalls if name == "utimensat" else os
        monkeypatch.setattr(module, name, lambda *_, name=name: done.append(name))

    everything = Changes(0o600, ContainerId(7), ContainerId(8), 3, (5, 6), (5, 6))
    fs.setattr(number, everything, handle if through_handle else None)

    assert tuple(done) == STEPS
    fs.release(handle)


@pytest.mark.parametrize("fails_at", STEPS)
def test_setattr_that_fails_half_way_leaves_what_was_done(
    fs: PassthroughFs, source: Path, fails_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "file").write_bytes(b"content")
    before = (source / "file").stat()
    number = number_of(fs, b"file")

    def failing(*_: object) -> None:
        raise OSError(errno.EDQUOT, "full")

    monkeypatch.setattr(syscalls if fails_at == "utimensat" else os, fails_at, failing)
    everything = Changes(0o600, ContainerId(7), ContainerId(8), 3, (5, 6), (5, 6))

    fails(errno.EDQUOT, lambda: fs.setattr(number, everything))

    found = (source / "file").stat()
    changed = [
        stat.S_IMODE(found.st_mode) == 0o600,
        found.st_uid == 7,
        found.st_size == 3,
        found.st_atime_ns == 5_000_000_006,
    ]
    assert changed == [STEPS.index(fails_at) > step for step in range(len(STEPS))]
    assert before.st_size == 7


@pytest.mark.parametrize(("name", "expected"), [("file", (1, 2)), ("dir", (3, 4))])
def test_every_reply_has_the_timeouts_of_its_kind(
    source: Path, name: str, expected: tuple[int, int]
) -> None:
    """GETATTR and SETATTR too: or a directory's attributes would stay known for a file's time."""
    (source / "file").touch()
    (source / "dir").mkdir()
    config = effective(entry_timeout=1, attr_timeout=2, dir_entry_timeout=3, dir_attr_timeout=4)
    fs = PassthroughFs(config, os.open(source, os.O_PATH))
    try:
        found = fs.lookup(ROOT, name.encode())
        entries = [found, listing(fs)[name.encode()]]
        entries += [fs.mkdir(ROOT, b"new", 0o700, CALLER)] if name == "dir" else []
        entries += [fs.create(ROOT, b"new", 0o600, 0, CALLER)[0]] if name == "file" else []
        number = found.inode_number
        replies = [fs.getattr(number), fs.setattr(number, Changes(mode=0o700))]
    finally:
        fs.close()

    assert {entry and (entry.entry_timeout, entry.attr_timeout) for entry in entries} == {expected}
    assert {reply.timeout for reply in replies} == {expected[1]}


def test_the_same_number_in_every_answer(fs: PassthroughFs, source: Path) -> None:
    """Also of a file on another device below the source: programs compare st_ino."""
    (source / "other").mkdir()
    target = os.fsencode(source / "other")
    syscalls.mount(b"none", target, b"tmpfs", 0, b"")
    try:
        (source / "other" / "file").touch()
        directory = fs.lookup(ROOT, b"other").inode_number
        entry = fs.lookup(directory, b"file")
        listed = listing(fs, directory)[b"file"]
        number = entry.inode_number

        assert listed is not None
        assert listed.inode_number == number != entry.stat.st_ino
        assert fs.getattr(number).number == number
        assert fs.setattr(number, Changes(mode=0o600)).number == number
        assert fs.getattr(directory).number == directory
    finally:
        syscalls.umount2(target, syscalls.MNT_DETACH)


def test_the_root_has_the_hosts_number(fs: PassthroughFs, source: Path) -> None:
    assert fs.getattr(ROOT).number == source.stat().st_ino


@pytest.mark.parametrize(
    ("caller", "mode", "allowed"),
    [
        (caller(0, 0), 0o000, os.R_OK | os.W_OK),
        (caller(0, 0), 0o001, os.R_OK | os.W_OK | os.X_OK),
        (caller(1, 9), 0o700, os.R_OK | os.W_OK | os.X_OK),
        (caller(1, 2), 0o077, 0),
        (caller(9, 2), 0o050, os.R_OK | os.X_OK),
        (caller(9, 2), 0o707, 0),
        (caller(9, 9), 0o774, os.R_OK),
    ],
)
def test_access_looks_at_the_one_class_that_the_caller_is_in(
    fs: PassthroughFs, source: Path, caller: Caller, mode: int, allowed: int
) -> None:
    (source / "file").touch()
    os.chown(source / "file", 1, 2)
    (source / "file").chmod(mode)
    number = number_of(fs, b"file")

    granted = {mask for mask in range(8) if fs.access(number, mask, caller)}

    assert granted == {mask for mask in range(8) if not mask & ~allowed}


def test_root_may_search_any_directory(fs: PassthroughFs, source: Path) -> None:
    (source / "dir").mkdir(mode=0)

    assert fs.access(number_of(fs, b"dir"), os.X_OK, caller(0, 0))


def test_extended_attributes_of_a_symlink_are_its_own(fs: PassthroughFs, source: Path) -> None:
    (source / "file").touch()
    (source / "link").symlink_to("file")
    number = number_of(fs, b"link")

    fs.setxattr(number, b"trusted.link", b"1")
    fails(errno.EPERM, lambda: fs.setxattr(number, b"user.link", b"1"))

    assert os.getxattr(source / "link", "trusted.link", follow_symlinks=False) == b"1"
    assert os.listxattr(source / "file") == []


@pytest.mark.parametrize("name", [b"system.nfs4_acl", b"system.cifs_acl", b"system."])
def test_attributes_of_the_system_are_refused(fs: PassthroughFs, name: bytes) -> None:
    """The kernel asks nobody's permission for them: a caller would set ACLs as root."""
    for call in (
        lambda: fs.getxattr(ROOT, name),
        lambda: fs.setxattr(ROOT, name, b""),
        lambda: fs.removexattr(ROOT, name),
    ):
        fails(errno.EOPNOTSUPP, call)


@pytest.mark.parametrize("name", [b"system.posix_acl_access", b"system.posix_acl_default"])
def test_acls_that_would_not_be_honoured_are_refused_and_hidden(
    fs: PassthroughFs, source: Path, name: bytes
) -> None:
    (source / "dir").mkdir()
    # acl(5) in its stored form: rwx for the owner, user 7, the group, the mask and the others.
    entries = [(0x01, 7, -1), (0x02, 7, 7), (0x04, 7, -1), (0x10, 7, -1), (0x20, 7, -1)]
    value = b"\2\0\0\0" + b"".join(
        tag.to_bytes(2, "little")
        + mode.to_bytes(2, "little")
        + who.to_bytes(4, "little", signed=True)
        for tag, mode, who in entries
    )
    os.setxattr(source / "dir", name, value)
    assert os.listxattr(source / "dir") == [name.decode()]
    number = number_of(fs, b"dir")

    assert fs.listxattr(number, caller(0, 0)) == []
    fails(errno.EOPNOTSUPP, lambda: fs.getxattr(number, name))
    fails(errno.EOPNOTSUPP, lambda: fs.setxattr(number, name, value))
    fails(errno.EOPNOTSUPP, lambda: fs.removexattr(number, name))

    assert os.getxattr(source / "dir", name) == value

"""Attributes as bytes: what replies have, for how long, and changes that fail half way."""

import contextlib
import errno
import os
import resource
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.options.choices import InodeFileHandles, SessionKind
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import Connect, Kernel, attributes, entry, text
from tests.support.tools import abi, wire
from tests.support.tools.bodies import BODIES
from tests.support.tools.implementations import IMPLEMENTATIONS
from tests.support.tools.options import effective

STATX_BTIME = 0x0800
NS_PER_S = 10**9
ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")


def volume(**options: object) -> object:
    return effective(session=SessionKind.KERNEL, **options)


def getattr_(kernel: Kernel, nodeid: int) -> dict[str, int]:
    return attributes(kernel.ask(Opcode.GETATTR, BODIES["GETATTR"], nodeid).body)


def test_replies_have_what_stat_says(kernel: Kernel, source: Path) -> None:
    """All fields of the file differ."""
    path = source / "file"
    path.write_bytes(b"x" * 5000)
    os.link(path, source / "second")
    os.chown(path, 4_000_000_000, 41_002)
    path.chmod(0o6751)
    os.utime(path, ns=(1_234_567_890_123_456_789, -1_500_000_001))
    found, host = entry(kernel.ask(Opcode.LOOKUP, text(b"file")).body), path.stat()
    kernel.granted.append(found["nodeid"])

    assert (found["atime"], found["atimensec"]) == (1_234_567_890, 123_456_789)
    assert (found["mtime"], found["mtimensec"]) == (-2, 499_999_999)
    assert found["ctime"] * NS_PER_S + found["ctimensec"] == host.st_ctime_ns
    assert (found["uid"], found["gid"], found["mode"]) == (4_000_000_000, 41_002, 0o106751)
    assert (found["ino"], found["size"], found["nlink"]) == (host.st_ino, 5000, 2)
    assert (found["blocks"], found["blksize"]) == (host.st_blocks, host.st_blksize)
    same = getattr_(kernel, found["nodeid"])
    assert {name: found[name] for name in same if name in found} == {
        name: value for name, value in same.items() if name in found
    }


@pytest.mark.parametrize(("major", "minor"), [(1, 3), (4095, 0xFFFFF), (0, 0)])
def test_a_device_number_has_the_form_of_the_kernel(
    kernel: Kernel, source: Path, major: int, minor: int
) -> None:
    os.mknod(source / "device", stat.S_IFCHR | 0o600, os.makedev(major, minor))

    rdev = getattr_(kernel, kernel.lookup(b"device"))["rdev"]

    assert rdev == minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def test_the_root_has_the_hosts_number(kernel: Kernel, source: Path) -> None:
    assert getattr_(kernel, abi.ROOT_ID)["ino"] == source.stat().st_ino


@pytest.mark.parametrize(("name", "expected"), [("file", (1, 2)), ("dir", (3, 4))])
def test_every_reply_has_the_timeouts_of_its_kind(
    connect: Connect, source: Path, name: str, expected: tuple[int, int]
) -> None:
    """Otherwise a directory's attributes would stay valid for the time of a file's."""
    (source / "file").touch()
    (source / "dir").mkdir()
    kernel = connect(
        volume(entry_timeout=1, attr_timeout=2, dir_entry_timeout=3, dir_attr_timeout=4)
    )
    opcode = Opcode.MKDIR if name == "dir" else Opcode.CREATE
    found = entry(kernel.ask(Opcode.LOOKUP, text(name.encode())).body)
    created = entry(kernel.ask(opcode, BODIES[opcode.name]).body)
    mode = wire.SETATTR_IN.pack(abi.FATTR_MODE, *[0] * 9, 0o700, 0, 0)
    replies = [
        getattr_(kernel, found["nodeid"]),
        attributes(kernel.ask(Opcode.SETATTR, mode, found["nodeid"]).body),
    ]

    assert {(one["entry_valid"], one["attr_valid"]) for one in (found, created)} == {expected}
    assert {one["attr_valid"] for one in replies} == {expected[1]}


def test_fractions_of_a_timeout_are_nanoseconds(connect: Connect, source: Path) -> None:
    (source / "file").touch()
    kernel = connect(volume(entry_timeout=1.5, attr_timeout=0.25))

    found = entry(kernel.ask(Opcode.LOOKUP, text(b"file")).body)

    assert (found["entry_valid"], found["entry_valid_nsec"]) == (1, 500_000_000)
    assert (found["attr_valid"], found["attr_valid_nsec"]) == (0, 250_000_000)


EVERYTHING = (
    *(abi.FATTR_MODE, abi.FATTR_UID, abi.FATTR_GID, abi.FATTR_SIZE),
    *(abi.FATTR_ATIME, abi.FATTR_MTIME),
)


def changed(path: Path) -> list[bool]:
    """Return which of mode, owner, size and times have changed."""
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode) == 0o600
    return [mode, found.st_uid == 7, found.st_size != 7, found.st_atime_ns == 5_000_000_006]


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process make no file larger than *size* bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    ("size", "error", "done"), [(3, 0, [True] * 4), (100, errno.EFBIG, [True, True, False, False])]
)
def test_a_setattr_that_fails_half_way_keeps_the_changes_before(
    kernel: Kernel, source: Path, size: int, error: int, done: list[bool]
) -> None:
    """The order is mode, owner, size, times."""
    (source / "file").write_bytes(b"content")
    body = wire.SETATTR_IN.pack(sum(EVERYTHING), 0, size, 0, 5, 5, 0, 6, 6, 0, 0o600, 7, 8)

    nodeid = kernel.lookup(b"file")

    with largest_file(10):
        reply = kernel.ask(Opcode.SETATTR, body, nodeid)

    assert reply.error == error
    assert changed(source / "file") == done


def statx(kernel: Kernel, nodeid: int) -> dict[str, int]:
    fields = wire.STATX_OUT.unpack(kernel.ask(Opcode.STATX, BODIES["STATX"], nodeid).body)
    names = (
        *("attr_valid", "attr_valid_nsec", "flags", "mask", "blksize", "attributes", "nlink"),
        *("uid", "gid", "mode", "ino", "size", "blocks", "attributes_mask", "atime", "atimensec"),
        *("btime", "btimensec"),
    )
    return dict(zip(names, fields, strict=False))


def test_the_birth_time_is_beside_the_attributes(kernel: Kernel, source: Path) -> None:
    (source / "file").write_bytes(b"content")
    nodeid = kernel.lookup(b"file")
    shown = subprocess.check_output(["stat", "-c", "%.9W", source / "file"], text=True).strip()

    found, alone = statx(kernel, nodeid), getattr_(kernel, nodeid)

    assert found["mask"] & STATX_BTIME
    assert f"{found['btime']}.{found['btimensec']:09}" == shown
    both = found.keys() & alone.keys() - {"flags"}
    assert {name: found[name] for name in both} == {name: alone[name] for name in both}


@pytest.mark.parametrize("start", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def test_a_file_system_without_birth_times_has_none(start: object) -> None:
    options = volume(inode_file_handles=InodeFileHandles.NEVER)
    session = start(Path("/proc/self"), options)  # type: ignore[operator]

    found = statx(Kernel(session), abi.ROOT_ID)

    assert not found["mask"] & STATX_BTIME
    assert stat.S_ISDIR(found["mode"])
    session.close()


def test_a_file_system_is_brought_to_stable_storage_by_a_directory(
    kernel: Kernel, source: Path
) -> None:
    (source / "file").touch()

    assert kernel.ask(Opcode.SYNCFS, BODIES["SYNCFS"]).error == 0
    nodeid = kernel.lookup(b"file")
    assert kernel.ask(Opcode.SYNCFS, BODIES["SYNCFS"], nodeid).error == errno.EBADF


# Extended attributes


def xattr_requests(name: bytes) -> dict[str, bytes]:
    return {
        "GETXATTR": wire.GETXATTR_IN.pack(1000) + text(name),
        "SETXATTR": wire.SETXATTR_IN.pack(1, 0, 0) + text(name) + b"1",
        "REMOVEXATTR": text(name),
    }


def errors(kernel: Kernel, requests: dict[str, bytes], nodeid: int = abi.ROOT_ID) -> set[int]:
    return {kernel.ask(Opcode[name], body, nodeid).error for name, body in requests.items()}


def test_extended_attributes_of_a_symlink_are_its_own(kernel: Kernel, source: Path) -> None:
    (source / "file").touch()
    (source / "link").symlink_to("file")
    nodeid = kernel.lookup(b"link")
    trusted, user = xattr_requests(b"trusted.link"), xattr_requests(b"user.link")

    assert kernel.ask(Opcode.SETXATTR, trusted["SETXATTR"], nodeid).error == 0
    assert kernel.ask(Opcode.SETXATTR, user["SETXATTR"], nodeid).error == errno.EPERM
    assert os.getxattr(source / "link", "trusted.link", follow_symlinks=False) == b"1"
    assert os.listxattr(source / "file") == []


@pytest.mark.parametrize("name", [b"system.nfs4_acl", b"system.cifs_acl", b"system."])
def test_attributes_of_the_system_are_refused(kernel: Kernel, name: bytes) -> None:
    """The kernel checks no permission for them: a caller would set ACLs as root."""
    assert errors(kernel, xattr_requests(name)) == {errno.EOPNOTSUPP}


@pytest.mark.parametrize("name", ACLS)
def test_acls_that_are_not_in_force_are_refused_and_hidden(
    kernel: Kernel, source: Path, name: bytes
) -> None:
    (source / "dir").mkdir()
    # acl(5) in its stored form: rwx for the owner, user 7, the group, the mask and the others.
    entries = [(0x01, 7, -1), (0x02, 7, 7), (0x04, 7, -1), (0x10, 7, -1), (0x20, 7, -1)]
    value = b"\2\0\0\0" + b"".join(
        tag.to_bytes(2, "little")
        + mode.to_bytes(2, "little")
        + ids.to_bytes(4, "little", signed=True)
        for tag, mode, ids in entries
    )
    os.setxattr(source / "dir", name, value)
    nodeid = kernel.lookup(b"dir")

    assert kernel.ask(Opcode.LISTXATTR, BODIES["LISTXATTR"], nodeid).body == b""
    assert errors(kernel, xattr_requests(name), nodeid) == {errno.EOPNOTSUPP}
    assert os.getxattr(source / "dir", name) == value


@pytest.mark.parametrize("name", [b"user.a", b"system.posix_acl_access"])
def test_without_xattr_the_kernel_asks_for_no_attribute_again(
    connect: Connect, source: Path, name: bytes
) -> None:
    """The kernel remembers ENOSYS alone."""
    (source / "file").touch()
    os.setxattr(source / "file", "user.a", b"old")
    kernel = connect(volume(xattr=False))
    requests = xattr_requests(name) | {"LISTXATTR": BODIES["LISTXATTR"]}

    assert errors(kernel, requests, kernel.lookup(b"file")) == {errno.ENOSYS}
    assert os.getxattr(source / "file", "user.a") == b"old"

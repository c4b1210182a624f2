"""Numbers that no kernel sends: the largest of every field of every request, one by one.

Each gets an errno, or an answer where the number means nothing there; the log stays empty.
"""

import errno
import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from struct import Struct

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.linux.filecalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FS_IOC_SETFLAGS
from passthrough.options.choices import SessionKind
from passthrough.session import abi, wire
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import Kernel, text
from tests.support.tools.bodies import BODIES, WITHOUT_ANSWER
from tests.support.tools.direct import CALLER, number_of
from tests.support.tools.options import effective

LARGE = [(1 << bits) + more for bits in (31, 32, 62, 63, 64) for more in (-1, 0, 1)]
BITS = {"H": 16, "I": 32, "Q": 64, "i": 32, "q": 64}
SIGNED = "iq"
# In the header: opcode and unique are no numbers to act on.
HEADER = {"nodeid": 3, "uid": 4, "gid": 5, "pid": 6}
# Requests that go by what a directory has; all others are sent to a regular file.
OF_DIRECTORY = {
    *("LOOKUP", "SYMLINK", "MKNOD", "MKDIR", "UNLINK", "RMDIR", "RENAME", "RENAME2", "LINK"),
    *("CREATE", "TMPFILE", "OPENDIR", "READDIR", "READDIRPLUS", "RELEASEDIR", "FSYNCDIR", "STATFS"),
    *("SYNCFS", "ACCESS", "BATCH_FORGET"),
}
# They say how long the rest of the request is; and of what comes again with every mount.
OF_LENGTH = {("WRITE", 2), ("SETXATTR", 0), ("IOCTL", 4), ("BATCH_FORGET", 0)}
LEFT_OUT = {"INIT", "DESTROY"}
NOTHING: Mapping[str, int] = {}

FATTR = [
    *(abi.FATTR_MODE, abi.FATTR_UID, abi.FATTR_GID, abi.FATTR_SIZE, abi.FATTR_ATIME),
    *(abi.FATTR_MTIME, abi.FATTR_ATIME_NOW, abi.FATTR_MTIME_NOW, abi.FATTR_CTIME),
    *(abi.FATTR_FH | abi.FATTR_SIZE, abi.FATTR_KILL_SUIDGID | abi.FATTR_SIZE, 0),
]
MORE: dict[str, list[bytes]] = {
    "SETATTR": [wire.SETATTR_IN.pack(valid, *[0] * 12) for valid in FATTR],
    # Nothing is allocated: a disk may have the room.
    "FALLOCATE": [
        wire.FALLOCATE_IN.pack(1, 0, 10, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE),
    ],
    "IOCTL": [BODIES["IOCTL"], wire.IOCTL_IN.pack(1, 0, FS_IOC_SETFLAGS, 0, 4, 0) + bytes(4)],
    "MKNOD": [
        wire.MKNOD_IN.pack(kind | 0o600, 1, 0) + text(b"new")
        for kind in (stat.S_IFREG, stat.S_IFIFO)
    ],
    "MKDIR": [wire.MKDIR_IN.pack(0o700, 0) + text(b"new")],
    "CREATE": [wire.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0) + text(b"new")],
    "LINK": [wire.LINK_IN.pack(2) + text(b"new")],
    "SETLK": [BODIES["SETLK"], wire.LK_IN.pack(1, 7, 0, 9, 1, 5, abi.LK_FLOCK)],
    "SETLKW": [BODIES["SETLKW"], wire.LK_IN.pack(1, 7, 0, 9, 1, 5, abi.LK_FLOCK)],
    "OPEN": [BODIES["OPEN"], wire.OPEN_IN.pack(os.O_RDWR | os.O_TRUNC, abi.OPEN_KILL_SUIDGID)],
}


def letters(layout: Struct) -> list[str]:
    """Return the type of each number in *layout*, as struct has it."""
    found: list[str] = []
    for count, letter in re.findall(r"(\d*)([A-Za-z])", layout.format):
        if letter != "x":
            found.extend(letter * int(count or 1))
    return found


def large(letter: str) -> Iterator[int]:
    """Return the large numbers that a field has room for, and the same bits where it has a sign."""
    bits = BITS[letter]
    for number in LARGE:
        if number < 1 << bits:
            yield number - (1 << bits) * (letter in SIGNED and number >= 1 << (bits - 1))


def changed(name: str) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Return each request's body with one number changed; before it, the field and the number."""
    layout = wire.FIXED.get(Opcode[name])
    if layout is None:
        return
    for body in MORE.get(name, [BODIES[name]]):
        fields, rest = layout.unpack_from(body), body[layout.size :]
        for place, letter in enumerate(letters(layout)):
            for number in large(letter):
                with_it = (*fields[:place], number, *fields[place + 1 :])
                yield (place, number), layout.pack(*with_it) + rest


def raw(name: str, nodeid: int, body: bytes, header: Mapping[str, int] = NOTHING) -> bytes:
    """Return a whole request, with other numbers in its *header*."""
    words = [wire.IN_HEADER.size + len(body), Opcode[name], 2, nodeid, *CALLER, 1, 0]
    for field, number in header.items():
        words[HEADER[field]] = number
    return wire.IN_HEADER.pack(*words) + body


class Ground:
    """A file system with one file, which is open; made anew for each request."""

    def __init__(self, source: Path, name: str) -> None:
        self.source = source
        for path in source.iterdir():
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
        (source / "name").write_bytes(b"content")
        self.fs = PassthroughFs(
            effective(session=SessionKind.KERNEL), os.open(source, os.O_PATH | os.O_DIRECTORY)
        )
        self.kernel = Kernel(self.fs)
        number = number_of(self.fs, b"name")
        self.nodeid = abi.ROOT_ID if name in OF_DIRECTORY else number
        assert self.fs.open(number, os.O_RDWR) == 1
        assert self.fs.opendir(abi.ROOT_ID) == 1

    def send(self, request: bytes) -> int | None:
        """Return the errno of the answer, or None where there is none."""
        try:
            replies = self.kernel.send(request)
        finally:
            self.fs.close()
        return replies[0].error if replies else None


@pytest.mark.parametrize("name", sorted(set(BODIES) - LEFT_OUT))
def test_a_large_number_gets_an_errno_and_no_traceback(
    source: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for where, body in changed(name):
            if (name, where[0]) in OF_LENGTH:
                continue
            ground = Ground(source, name)
            error = ground.send(raw(name, ground.nodeid, body))
            assert not caplog.records, (where, caplog.text)
            assert (error is None) is (name in WITHOUT_ANSWER), where
            assert error != errno.EIO, where


@pytest.mark.parametrize("name", sorted(set(BODIES) - LEFT_OUT))
def test_a_large_number_in_the_header_gets_an_errno_and_no_traceback(
    source: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    letter = {field: letters(wire.IN_HEADER)[place] for field, place in HEADER.items()}
    with caplog.at_level(logging.WARNING):
        for field in HEADER:
            for number in large(letter[field]):
                ground = Ground(source, name)
                body = MORE.get(name, [BODIES[name]])[0]
                error = ground.send(raw(name, ground.nodeid, body, {field: number}))
                assert not caplog.records, (field, number, caplog.text)
                assert error != errno.EIO, (field, number)


REFUSED = {
    "READ, offset": ("READ", wire.READ_IN.pack(1, 1 << 63, 10, 0, 0, 0)),
    "READ, size": ("READ", wire.READ_IN.pack(1, 0, (1 << 20) + 1, 0, 0, 0)),
    "READ, the largest size": ("READ", wire.READ_IN.pack(1, 0, 0xFFFF_FFFF, 0, 0, os.O_DIRECT)),
    "WRITE, offset": ("WRITE", wire.WRITE_IN.pack(1, 1 << 63, 1, 0, 0, 0) + b"x"),
    "SETATTR, size": ("SETATTR", wire.SETATTR_IN.pack(abi.FATTR_SIZE, 0, 1 << 63, *[0] * 10)),
    "SETATTR, uid": ("SETATTR", wire.SETATTR_IN.pack(abi.FATTR_UID, *[0] * 10, 0xFFFF_FFFF, 0)),
    "SETATTR, gid": ("SETATTR", wire.SETATTR_IN.pack(abi.FATTR_GID, *[0] * 11, 0xFFFF_FFFF)),
    **{
        f"SETATTR, {name} {nanoseconds}": (
            "SETATTR",
            wire.SETATTR_IN.pack(valid, *[0] * 6, *[nanoseconds] * 3, 0, 0, 0),
        )
        for name, valid in (("atime", abi.FATTR_ATIME), ("mtime", abi.FATTR_MTIME))
        for nanoseconds in (10**9, (1 << 30) - 1, (1 << 30) - 2, 0xFFFF_FFFF)
    },
    "OPEN, flags": ("OPEN", wire.OPEN_IN.pack(1 << 31, 0)),
    "CREATE, flags": ("CREATE", wire.CREATE_IN.pack(1 << 31, 0o600, 0, 0) + text(b"new")),
    "MKNOD, mode": ("MKNOD", wire.MKNOD_IN.pack(1 << 31, 0, 0) + text(b"new")),
    "SETXATTR, flags": (
        "SETXATTR",
        wire.SETXATTR_IN.pack(5, 1 << 31, 0) + text(b"user.a") + b"value",
    ),
    "RENAME2, flags": ("RENAME2", wire.RENAME2_IN.pack(1, 1 << 31) + text(b"name", b"new")),
    "FALLOCATE, offset": ("FALLOCATE", wire.FALLOCATE_IN.pack(1, 1 << 63, 1, 3)),
    "LSEEK, whence": ("LSEEK", wire.LSEEK_IN.pack(1, 0, 1 << 31)),
    "COPY_FILE_RANGE": (
        "COPY_FILE_RANGE_64",
        wire.COPY_FILE_RANGE_IN.pack(1, 1 << 63, 2, 1, 0, 1, 0),
    ),
    "READDIR, offset": ("READDIR", wire.READ_IN.pack(1, (1 << 64) - 1, 4096, 0, 0, 0)),
    "SETLK, end": ("SETLK", wire.LK_IN.pack(1, 7, 0, 1 << 63, 1, 5, 0)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_too_large_is_einval(source: Path, what: str) -> None:
    name, body = REFUSED[what]
    ground = Ground(source, name)
    before = (source / "name").stat()

    assert ground.send(raw(name, ground.nodeid, body)) == errno.EINVAL
    assert (source / "name").stat() == before
    assert not (source / "new").exists()


@pytest.mark.parametrize("name", ["READDIR", "READDIRPLUS"])
def test_a_listing_is_no_longer_than_an_answer(source: Path, name: str) -> None:
    ground = Ground(source, name)
    body = wire.READ_IN.pack(1, 0, 0xFFFF_FFFF, 0, 0, 0)
    for number in range(5_000):
        (source / f"{number:0200}").touch()

    (reply,) = ground.kernel.send(raw(name, ground.nodeid, body))
    ground.fs.close()

    assert 0 < len(reply.body) <= 1 << 20

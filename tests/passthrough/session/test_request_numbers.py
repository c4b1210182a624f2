"""Numbers that no kernel sends: the largest of every field of every request, one at a time.

The answer is an errno, or a success if the field is not used; the log stays empty. The requests and
answers are bytes, for each implementation.
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

from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import CALLER, Connect, Kernel, Reply, text
from tests.support.tools import abi, wire
from tests.support.tools.bodies import BODIES, WITHOUT_ANSWER
from tests.support.tools.host_calls import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FS_IOC_SETFLAGS,
)

LARGE = [(1 << bits) + more for bits in (31, 32, 62, 63, 64) for more in (-1, 0, 1)]
BITS = {"H": 16, "I": 32, "Q": 64, "i": 32, "q": 64}
SIGNED = "iq"
# The fields of the header to change; opcode and unique are none that a session acts on.
HEADER = {"nodeid": 3, "uid": 4, "gid": 5, "pid": 6}
# Requests that are sent to a directory; all others are sent to a regular file.
OF_DIRECTORY = {
    *("LOOKUP", "SYMLINK", "MKNOD", "MKDIR", "UNLINK", "RMDIR", "RENAME", "RENAME2", "LINK"),
    *("CREATE", "TMPFILE", "OPENDIR", "READDIR", "READDIRPLUS", "RELEASEDIR", "FSYNCDIR", "STATFS"),
    *("SYNCFS", "ACCESS", "BATCH_FORGET"),
}
# These fields give the length of the rest of the request.
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
    # It allocates nothing, because a disk may have the room.
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
    """Return the type of each number in *layout*, as a letter of struct."""
    found: list[str] = []
    for count, letter in re.findall(r"(\d*)([A-Za-z])", layout.format):
        if letter != "x":
            found.extend(letter * int(count or 1))
    return found


def large(letter: str) -> Iterator[int]:
    """Yield the large numbers of a field, and those of the same bits if the field has a sign."""
    bits = BITS[letter]
    for number in LARGE:
        if number < 1 << bits:
            yield number - (1 << bits) * (letter in SIGNED and number >= 1 << (bits - 1))


def changed(name: str) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Yield bodies of *name* with one number changed, each after the field and the number."""
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
    """Return a whole request, with the numbers of *header* in its header."""
    words = [wire.IN_HEADER.size + len(body), Opcode[name], 2, nodeid, *CALLER, 1, 0]
    for field, number in header.items():
        words[HEADER[field]] = number
    return wire.IN_HEADER.pack(*words) + body


def fresh(source: Path, connect: Connect) -> Kernel:
    """Start a session over one file, which is open as fh 1; fh 1 is the root directory as well."""
    for path in source.iterdir():
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    (source / "name").write_bytes(b"content")
    kernel = connect()
    assert kernel.open(kernel.lookup(b"name")) == 1
    opened = kernel.ask(Opcode.OPENDIR, BODIES["OPENDIR"])
    assert wire.OPEN_OUT.unpack(opened.body)[0] == 1
    return kernel


def nodeid_for(kernel: Kernel, name: str) -> int:
    """Return the nodeid that a request *name* is sent to."""
    return abi.ROOT_ID if name in OF_DIRECTORY else kernel.granted[0]


def error_of(replies: list[Reply]) -> int | None:
    """Return the errno of the answer; None if there is no answer."""
    return replies[0].error if replies else None


@pytest.mark.parametrize("name", sorted(set(BODIES) - LEFT_OUT))
def test_a_large_number_gets_an_errno_and_no_traceback(
    source: Path, connect: Connect, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for where, body in changed(name):
            if (name, where[0]) in OF_LENGTH:
                continue
            kernel = fresh(source, connect)
            error = error_of(kernel.send(raw(name, nodeid_for(kernel, name), body)))
            assert not caplog.records, (where, caplog.text)
            assert (error is None) is (name in WITHOUT_ANSWER), where
            assert error != errno.EIO, where


@pytest.mark.parametrize("name", sorted(set(BODIES) - LEFT_OUT))
def test_a_large_number_in_the_header_gets_an_errno_and_no_traceback(
    source: Path, connect: Connect, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    letter = {field: letters(wire.IN_HEADER)[place] for field, place in HEADER.items()}
    with caplog.at_level(logging.WARNING):
        for field in HEADER:
            for number in large(letter[field]):
                kernel = fresh(source, connect)
                body = MORE.get(name, [BODIES[name]])[0]
                request = raw(name, nodeid_for(kernel, name), body, {field: number})
                error = error_of(kernel.send(request))
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


@pytest.mark.parametrize("field", REFUSED)
def test_a_number_that_is_too_large_is_einval(source: Path, connect: Connect, field: str) -> None:
    name, body = REFUSED[field]
    kernel = fresh(source, connect)
    before = (source / "name").stat()

    (reply,) = kernel.send(raw(name, nodeid_for(kernel, name), body))

    assert reply.error == errno.EINVAL
    assert (source / "name").stat() == before
    assert not (source / "new").exists()


@pytest.mark.parametrize("name", ["READDIR", "READDIRPLUS"])
def test_a_listing_is_no_longer_than_an_answer(source: Path, connect: Connect, name: str) -> None:
    kernel = fresh(source, connect)
    body = wire.READ_IN.pack(1, 0, 0xFFFF_FFFF, 0, 0, 0)
    for number in range(5_000):
        (source / f"{number:0200}").touch()

    (reply,) = kernel.send(raw(name, abi.ROOT_ID, body))

    assert 0 < len(reply.body) <= 1 << 20

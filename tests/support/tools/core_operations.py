"""Operations on a prepared directory, one of each kind that the core serves, and their traces.

A request that is served again after a death must end as one that is served once: with the same
reply, the same tree, and nothing that is left over.
"""

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from passthrough.linux.syscalls import RENAME_NOREPLACE
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import Kernel, entry, listed, text
from tests.support.tools import wire
from tests.support.tools.abi import ROOT_ID
from tests.support.tools.host_calls import RENAME_EXCHANGE, RENAME_WHITEOUT

KILL_BITS = 1 << 2  # FUSE_WRITE_KILL_SUIDGID
KILL_ON_OPEN = 1  # FUSE_OPEN_KILL_SUIDGID
MODE, UID, GID, SIZE, ATIME, MTIME, KILL_SUIDGID = 1, 2, 4, 8, 16, 32, 1 << 11  # FATTR_*
COLLAPSE, INSERT, PUNCH = 8, 32, 3  # FALLOC_FL_*
BLOCK = 4096
OWNER = (41_003, 41_004)


class Request(NamedTuple):
    """A request without its header."""

    opcode: int
    body: bytes
    nodeid: int = ROOT_ID


Operation = Callable[[Kernel], Request]
"""Looks up and opens what a request needs, and returns the request."""


def prepare(source: Path) -> None:
    """Make the tree that the operations begin with."""
    (source / "file").write_bytes(b"content")
    (source / "other").write_bytes(b"another")
    (source / "blocks").write_bytes(bytes([1] * BLOCK + [2] * BLOCK + [3] * BLOCK))
    (source / "program").write_bytes(b"program")
    for name in ("file", "other", "blocks"):
        (source / name).chmod(0o666)
    os.chown(source / "program", *OWNER)
    (source / "program").chmod(0o6777)
    (source / "link").symlink_to("file")
    (source / "empty").mkdir()
    (source / "full").mkdir()
    (source / "full" / "name").touch()
    (source / "team").mkdir()
    os.chown(source / "team", *OWNER)
    (source / "team").chmod(0o2777)
    os.setxattr(source / "file", "user.a", b"value")


def _made(opcode: int, fixed: bytes, *names: bytes, below: bytes = b"") -> Operation:
    def operation(kernel: Kernel) -> Request:
        return Request(opcode, fixed + text(*names), kernel.lookup(below) if below else ROOT_ID)

    return operation


def _on(opcode: int, name: bytes, body: bytes) -> Operation:
    return lambda kernel: Request(opcode, body, kernel.lookup(name))


def _rename(old: bytes, new: bytes, flags: int = 0) -> Operation:
    return _made(Opcode.RENAME2, wire.RENAME2_IN.pack(ROOT_ID, flags), old, new)


def _create(flags: int, mode: int = 0o640, below: bytes = b"") -> Operation:
    return _made(Opcode.CREATE, wire.CREATE_IN.pack(flags, mode, 0, 0), b"new", below=below)


def _opened(
    opcode: int, name: bytes, body: Callable[[int], bytes], flags: int = os.O_RDWR
) -> Operation:
    def operation(kernel: Kernel) -> Request:
        nodeid = kernel.lookup(name)
        return Request(opcode, body(kernel.open(nodeid, flags)), nodeid)

    return operation


def _write(name: bytes, offset: int, data: bytes, flags: int, kill: int = 0) -> Operation:
    return _opened(
        Opcode.WRITE,
        name,
        lambda fh: wire.WRITE_IN.pack(fh, offset, len(data), kill, 0, flags) + data,
        flags,
    )


def _allocate(name: bytes, offset: int, length: int, mode: int) -> Operation:
    return _opened(
        Opcode.FALLOCATE, name, lambda fh: wire.FALLOCATE_IN.pack(fh, offset, length, mode)
    )


def _set(name: bytes, valid: int, **values: int) -> Operation:
    fields = ("fh", "size", "owner", "atime", "mtime", "ctime", "an", "mn", "cn", "mode", "u", "g")
    body = wire.SETATTR_IN.pack(valid, *(values.get(field, 0) for field in fields))
    return _on(Opcode.SETATTR, name, body)


def _set_attribute(name: bytes, value: bytes, flags: int) -> Operation:
    body = wire.SETXATTR_IN.pack(len(value), flags, 0) + text(name) + value
    return _on(Opcode.SETXATTR, b"file", body)


def _link(kernel: Kernel) -> Request:
    return Request(Opcode.LINK, wire.LINK_IN.pack(kernel.lookup(b"file")) + text(b"new"))


def _copy(kernel: Kernel) -> Request:
    nodeid, target = kernel.lookup(b"file"), kernel.lookup(b"program")
    fh, target_fh = kernel.open(nodeid), kernel.open(target)
    body = wire.COPY_FILE_RANGE_IN.pack(fh, 0, target, target_fh, 2, 100, 0)
    return Request(Opcode.COPY_FILE_RANGE, body, nodeid)


def _open_removed(kernel: Kernel) -> Request:
    nodeid = kernel.lookup(b"file")
    assert kernel.ask(Opcode.UNLINK, text(b"file")).error == 0
    return Request(Opcode.OPEN, wire.OPEN_IN.pack(os.O_RDWR, 0), nodeid)


def _list(opcode: int) -> Operation:
    def operation(kernel: Kernel) -> Request:
        nodeid = kernel.lookup(b"full")
        reply = kernel.ask(Opcode.OPENDIR, wire.OPEN_IN.pack(0, 0), nodeid)
        (fh, *_) = wire.OPEN_OUT.unpack(reply.body)
        return Request(opcode, wire.READ_IN.pack(fh, 0, 4096, 0, 0, 0), nodeid)

    return operation


def _release_directory(kernel: Kernel) -> Request:
    nodeid = kernel.lookup(b"full")
    opened = kernel.ask(Opcode.OPENDIR, wire.OPEN_IN.pack(0, 0), nodeid)
    (fh, *_) = wire.OPEN_OUT.unpack(opened.body)
    return Request(Opcode.RELEASEDIR, wire.RELEASE_IN.pack(fh, 0, 0, 0), nodeid)


NAMES: Mapping[str, Operation] = {
    "lookup": _made(Opcode.LOOKUP, b"", b"file"),
    "mkdir": _made(Opcode.MKDIR, wire.MKDIR_IN.pack(0o750, 0), b"new"),
    "mkdir of a team": _made(Opcode.MKDIR, wire.MKDIR_IN.pack(0o750, 0), b"new", below=b"team"),
    "mknod of a file": _made(Opcode.MKNOD, wire.MKNOD_IN.pack(0o100640, 0, 0), b"new"),
    "mknod of a fifo": _made(Opcode.MKNOD, wire.MKNOD_IN.pack(0o010640, 0, 0), b"new"),
    "mknod of a device": _made(Opcode.MKNOD, wire.MKNOD_IN.pack(0o020640, 0x103, 0), b"new"),
    "symlink": _made(Opcode.SYMLINK, b"", b"new", b"target"),
    "link": _link,
    "unlink": _made(Opcode.UNLINK, b"", b"file"),
    "rmdir": _made(Opcode.RMDIR, b"", b"empty"),
    "rename": _made(Opcode.RENAME, wire.RENAME_IN.pack(ROOT_ID), b"file", b"new"),
    "rename over": _rename(b"file", b"other"),
    "rename of a directory": _rename(b"full", b"empty"),
    "rename without replacing": _rename(b"file", b"new", RENAME_NOREPLACE),
    "exchange": _rename(b"file", b"full", RENAME_EXCHANGE),
    "rename with a whiteout": _rename(b"file", b"other", RENAME_WHITEOUT),
    "create": _create(os.O_RDWR),
    "create exclusively": _create(os.O_WRONLY | os.O_EXCL | os.O_TRUNC),
    "create without rights": _create(os.O_RDWR | os.O_EXCL, 0),
    "create in a team": _create(os.O_RDWR, 0o640, b"team"),
    "tmpfile": _made(Opcode.TMPFILE, wire.CREATE_IN.pack(os.O_RDWR, 0o640, 0, 0), b"/"),
}
"""Those on names."""

INODES: Mapping[str, Operation] = {
    "chmod": _set(b"file", MODE, mode=0o4711),
    "chown": _set(b"program", UID | GID | KILL_SUIDGID, u=7, g=8),
    "truncate": _set(b"program", SIZE | KILL_SUIDGID, size=3),
    "set times": _set(b"file", ATIME | MTIME, atime=100, mtime=200),
    "setxattr": _set_attribute(b"user.b", b"new value", 0),
    "setxattr that creates": _set_attribute(b"user.b", b"new value", os.XATTR_CREATE),
    "setxattr that replaces": _set_attribute(b"user.a", b"new value", os.XATTR_REPLACE),
    "removexattr": _on(Opcode.REMOVEXATTR, b"file", text(b"user.a")),
}
"""Those on inodes."""

FILES: Mapping[str, Operation] = {
    "open": _on(Opcode.OPEN, b"file", wire.OPEN_IN.pack(os.O_RDWR, 0)),
    "open without a name": _open_removed,
    "open that truncates": _on(
        Opcode.OPEN, b"program", wire.OPEN_IN.pack(os.O_RDWR | os.O_TRUNC, KILL_ON_OPEN)
    ),
    "release": _opened(Opcode.RELEASE, b"file", lambda fh: wire.RELEASE_IN.pack(fh, 0, 0, 0)),
    "write": _write(b"file", 3, b"data", os.O_RDWR),
    "write that clears": _write(b"program", 3, b"data", os.O_WRONLY, KILL_BITS),
    "append": _write(b"file", 0, b"data", os.O_WRONLY | os.O_APPEND),
    "append synchronously": _write(b"file", 0, b"data", os.O_RDWR | os.O_APPEND | os.O_SYNC),
    "append that clears": _write(b"program", 0, b"d", os.O_WRONLY | os.O_APPEND, KILL_BITS),
    "allocate": _allocate(b"file", 0, 10_000, 0),
    "punch a hole": _allocate(b"blocks", BLOCK, BLOCK, PUNCH),
    "collapse a range": _allocate(b"blocks", 0, BLOCK, COLLAPSE),
    "insert a range": _allocate(b"blocks", BLOCK, BLOCK, INSERT),
    "copy": _copy,
    "open a directory": _on(Opcode.OPENDIR, b"full", wire.OPEN_IN.pack(0, 0)),
    "list": _list(Opcode.READDIR),
    "list with attributes": _list(Opcode.READDIRPLUS),
    "release a directory": _release_directory,
    "flush": _opened(Opcode.FLUSH, b"file", lambda fh: wire.FLUSH_IN.pack(fh, 0)),
    "fsync": _opened(Opcode.FSYNC, b"file", lambda fh: wire.FSYNC_IN.pack(fh, 0)),
    "read": _opened(Opcode.READ, b"file", lambda fh: wire.READ_IN.pack(fh, 0, 100, 0, 0, 0)),
}
"""Those on open files and directories."""

REFUSED: Mapping[str, Operation] = {
    "setxattr of an attribute that is there": _set_attribute(b"user.a", b"value", os.XATTR_CREATE),
    "removexattr of no attribute": _on(Opcode.REMOVEXATTR, b"file", text(b"user.b")),
}
"""Those that the host refuses, and that leave what their success would."""

OPERATIONS: Mapping[str, Operation] = {**NAMES, **INODES, **FILES, **REFUSED}

ALWAYS = ("TAKEN", "BEGUN", "SERVED", "ANSWERED", "SENT")
APPENDS_A_PART = _write(b"program", 0, b"gram", os.O_WRONLY | os.O_APPEND, KILL_BITS)
"""Appends what the file has already."""

_ENTRIES = {"lookup", *(name for name in NAMES if name.startswith(("mk", "link", "sym")))}
_CREATED = {name for name in NAMES if name.startswith(("create", "tmpfile"))}
_CLEARING = {"write that clears", "append that clears", "truncate", "open that truncates", "copy"}
_ATTRIBUTES = {name for name in OPERATIONS if "xattr" in name}
_GRANTING = {*_ENTRIES, *_CREATED, "list with attributes"}
_OPENS = {*_CREATED, "open", "open that truncates", "open a directory"}
_RELEASES = {"release", "release a directory"}
_APPENDS = {"append", "append synchronously", "append that clears"}
_SHIFTS = {"collapse a range", "insert a range"}
NOTED = {*NAMES, *_CLEARING, *_ATTRIBUTES, *_RELEASES, *_APPENDS, *_SHIFTS} - {"lookup"}
"""The operations that note a call: it must not be made twice, or tells the kernel of bits."""
_READS = {name for name in FILES if name.startswith(("list", "read", "f"))}
_WITHOUT_STEP = {"lookup", "open", "open without a name", "open a directory", *_RELEASES, *_READS}


def steps(name: str) -> tuple[str, ...]:
    """Return the steps of steps.pxd that an operation passes in a plain volume, in their order."""
    passed = {
        "CALLING": name in NOTED,
        "MADE": name not in _WITHOUT_STEP,
        **dict.fromkeys(("GRANTING", "GRANTED", "COUNTED"), name in _GRANTING),
        **dict.fromkeys(("OPENING", "OPENED"), name in _OPENS),
        "RELEASED": name in _RELEASES,
    }
    return (*ALWAYS[:2], *(step for step, passes in passed.items() if passes), *ALWAYS[2:])


_OPENING = {Opcode.OPEN: 0, Opcode.CREATE: wire.ENTRY_OUT.size, Opcode.TMPFILE: wire.ENTRY_OUT.size}
_ENTRY = ("mode", "nlink", "uid", "gid", "rdev", "size")


def opened(opcode: int, body: bytes) -> int | None:
    """Return the fh of a file or directory that a reply has opened."""
    if not body:
        return None
    if opcode == Opcode.OPENDIR:
        return int(wire.OPEN_OUT.unpack(body)[0])
    if opcode not in _OPENING:
        return None
    return int(wire.OPEN_OUT.unpack_from(body, _OPENING[Opcode(opcode)])[0])


def closing(opcode: int) -> int:
    """Return the opcode that closes what this one has opened."""
    return Opcode.RELEASEDIR if opcode == Opcode.OPENDIR else Opcode.RELEASE


def granted(opcode: int, body: bytes) -> list[int]:
    """Return the nodeids of which a reply has counted a lookup."""
    if opcode == Opcode.READDIRPLUS:
        return [nodeid for nodeid, *_ in listed(body, plus=True).values() if nodeid]
    if len(body) < wire.ENTRY_OUT.size or opcode in {Opcode.READ, Opcode.READDIR}:
        return []
    return [entry(body)["nodeid"]]


def shown(opcode: int, body: bytes) -> object:
    """Return what a reply tells a caller, without times and numbers."""
    if opcode in {*_OPENING, Opcode.OPENDIR} and not _OPENING.get(Opcode(opcode)):
        return wire.OPEN_OUT.unpack(body)[1:]
    if opcode in {Opcode.READDIR, Opcode.READDIRPLUS}:
        return [*listed(body, plus=opcode == Opcode.READDIRPLUS)]
    if opcode == Opcode.READ:
        return body
    if opcode == Opcode.SETATTR:
        fields: Mapping[str, Any] = dict(
            zip(("mode", "nlink", "uid", "gid"), wire.ATTR_OUT.unpack(body)[11:15], strict=True)
        )
        return fields
    if len(body) >= wire.ENTRY_OUT.size:
        found = entry(body)
        return [found[field] for field in _ENTRY]
    return body


def tree(source: Path) -> dict[str, tuple[object, ...]]:
    """Return all that the operations can change below *source*, but for times and numbers."""
    return {str(path.relative_to(source)): _state(path) for path in sorted(source.rglob("*"))}


def _state(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    content: object = None
    if stat.S_ISLNK(found.st_mode):
        content = path.readlink()
    elif stat.S_ISREG(found.st_mode):
        content = path.read_bytes()
    attributes = os.listxattr(path, follow_symlinks=False)
    values = {name: os.getxattr(path, name, follow_symlinks=False) for name in attributes}
    written = (found.st_mtime_ns, found.st_atime_ns) if found.st_mtime == 200 else ()
    return (
        *(found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_rdev),
        *(content, values, written),
    )

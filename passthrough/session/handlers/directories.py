"""Requests for directory streams."""

import contextlib
import errno
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Final

from passthrough.core.listing import KIND_SHIFT, Record
from passthrough.identity.attributes import Entry
from passthrough.linux.errors import os_error
from passthrough.session import abi, wire
from passthrough.session.abi import Opcode
from passthrough.session.channel import MAX_WRITE
from passthrough.session.request import Request
from passthrough.session.session import Handler, Session


def opendir(session: Session, request: Request) -> bytes:
    """Open a directory stream."""
    fs = session.fs
    if fs.config.no_opendir:
        raise os_error(errno.ENOSYS)  # as with no_open
    allowed = abi.FOPEN_KEEP_CACHE | abi.FOPEN_CACHE_DIR if fs.cache.keep_pages else 0
    return wire.OPEN_OUT.pack(fs.opendir(request.nodeid), allowed, 0)


def readdir(session: Session, request: Request) -> bytes:
    """Names, and what kind of file each is."""
    handle, offset, size, _more, _owner, _flags = request.fields(wire.READ_IN)
    size = min(size, MAX_WRITE)
    parts: list[bytes] = []
    with _stream(session, request, handle) as stream:
        for record in session.fs.readdir(stream, offset):
            part = wire.dirent(record.number, record.end, record.kind, record.name)
            size -= len(part)
            if size < 0:
                break
            parts.append(part)
    return b"".join(parts)


def readdirplus(session: Session, request: Request) -> bytes:
    """Names with what a lookup of each would answer, and counting as one.

    The kernel counts what was delivered only if the reply is a good one: an error after the first
    name waits for the next request, which begins with it if it lasts.
    """
    handle, offset, size, _more, _owner, _flags = request.fields(wire.READ_IN)
    size = min(size, MAX_WRITE)
    parts: list[bytes] = []
    with _stream(session, request, handle) as stream:
        try:
            for record, entry in session.fs.readdirplus(stream, offset, known=False):
                part = _plus(record, entry)
                size -= len(part)
                if size < 0:
                    if entry is not None:
                        session.fs.forget(entry.inode_number, 1)
                    break
                parts.append(part)
        except OSError:
            if not parts:
                raise
    return b"".join(parts)


def _plus(record: Record, entry: Entry | None) -> bytes:
    if entry is None:
        return wire.absent(0) + wire.dirent(record.number, record.end, record.kind, record.name)
    kind = entry.stat.st_mode >> KIND_SHIFT
    return wire.entry(entry) + wire.dirent(entry.inode_number, record.end, kind, record.name)


def _stream(session: Session, request: Request, handle: int) -> AbstractContextManager[int]:
    """A guard that lends the handle of a stream, also where the kernel has opened none."""
    if handle:
        return contextlib.nullcontext(handle)
    return session.fs.unopened_stream(request.nodeid)


def fsyncdir(session: Session, request: Request) -> bytes:
    """Bring a directory to stable storage."""
    handle, flags = request.fields(wire.FSYNC_IN)
    datasync = bool(flags & abi.FSYNC_FDATASYNC)
    session.about_to_block()
    with _stream(session, request, handle) as stream:
        session.fs.fsyncdir(stream, datasync=datasync)
    return b""


def releasedir(session: Session, request: Request) -> bytes:
    """The last descriptor of a directory stream is closed."""
    handle, _flags, _more, _owner = request.fields(wire.RELEASE_IN)
    session.fs.releasedir(handle)
    return b""


HANDLERS: Final[Mapping[int, Handler]] = {
    Opcode.OPENDIR: opendir,
    Opcode.READDIR: readdir,
    Opcode.READDIRPLUS: readdirplus,
    Opcode.FSYNCDIR: fsyncdir,
    Opcode.RELEASEDIR: releasedir,
}

"""Requests for open files."""

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from typing import Final

from passthrough.linux.errors import os_error
from passthrough.session import abi, wire
from passthrough.session.abi import Init, Opcode
from passthrough.session.backing import NONE
from passthrough.session.channel import MAX_WRITE
from passthrough.session.request import Request
from passthrough.session.session import Handler, Session

_ROOT_USER: Final = 0


def open_(session: Session, request: Request) -> bytes:
    """Open a regular file."""
    fs = session.fs
    if fs.config.no_open:
        # Which the kernel remembers, and opens without a request from then on.
        raise os_error(errno.ENOSYS)
    flags, more = request.fields(wire.OPEN_IN)
    clear = _clears(session, request, flags, more)
    handle = fs.open(request.nodeid, flags, clear_privileges=clear, caller=request.caller())
    if fs.cache.refresh_on_open:
        # What the kernel does not know needs no forgetting, and the file is open by now.
        with contextlib.suppress(FileNotFoundError):
            session.notifier.attributes_changed(request.nodeid)
    return _opened(session, request.nodeid, handle, flags)


def create(session: Session, request: Request) -> bytes:
    """Create and open a regular file."""
    flags, mode, umask, _more = request.fields(wire.CREATE_IN)
    session.apply_umask(umask)
    entry, handle = session.fs.create(
        request.nodeid, request.name(), stat.S_IMODE(mode), flags, request.caller()
    )
    return wire.entry(entry) + _opened(session, entry.inode_number, handle, flags)


def tmpfile(session: Session, request: Request) -> bytes:
    """Create and open a regular file without a name; the one in the request means nothing."""
    request.name()
    flags, mode, umask, _more = request.fields(wire.CREATE_IN)
    session.apply_umask(umask)
    entry, handle = session.fs.tmpfile(request.nodeid, stat.S_IMODE(mode), flags, request.caller())
    return wire.entry(entry) + _opened(session, entry.inode_number, handle, flags)


def read(session: Session, request: Request) -> bytes:
    """Read at an offset."""
    handle, offset, size, _more, _owner, flags = request.fields(wire.READ_IN)
    fs = session.fs
    if size > MAX_WRITE:  # more than INIT has allowed (max_pages)
        raise os_error(errno.EINVAL)
    if not handle:
        return fs.read(fs.unopened(request.nodeid), offset, size)
    return fs.read(handle, offset, size, flags)


def write(session: Session, request: Request) -> bytes:
    """Write at an offset, straight from where the request lies."""
    handle, offset, size, more, _owner, flags = request.fields(wire.WRITE_IN)
    fs, data = session.fs, request.data(size)
    clear = bool(more & abi.WRITE_KILL_SUIDGID)
    if handle:
        # Before a write with O_DIRECT the kernel may send no SETATTR.
        caller = request.caller() if clear and flags & os.O_DIRECT else None
        written = fs.write(handle, offset, data, flags, clear_privileges=clear, caller=caller)
    else:
        # Many share this one: the kernel has found the end for those who append.
        own = fs.unopened(request.nodeid)
        written = fs.write(own, offset, data, clear_privileges=clear, caller=request.caller())
    return wire.WRITE_OUT.pack(written)


def flush(session: Session, request: Request) -> bytes:
    """A descriptor of an open file is closed."""
    handle, owner = request.fields(wire.FLUSH_IN)
    if not handle:
        raise os_error(errno.ENOSYS)  # a file that was never opened has nothing to report
    if session.backings.may_have_lost_privileges(request.nodeid):
        session.forget_attributes(request.nodeid)
    session.fs.flush(handle, owner)
    return b""


def fsync(session: Session, request: Request) -> bytes:
    """Bring a file to stable storage."""
    handle, flags = request.fields(wire.FSYNC_IN)
    fs = session.fs
    datasync = bool(flags & abi.FSYNC_FDATASYNC)
    session.about_to_block()
    fs.fsync(handle or fs.unopened(request.nodeid), datasync=datasync)
    return b""


def release(session: Session, request: Request) -> bytes:
    """The last descriptor of an open file is closed."""
    handle, _flags, more, _owner = request.fields(wire.RELEASE_IN)
    if session.passes_through:
        session.backings.release(request.nodeid)
    session.fs.release(handle, unlock=bool(more & abi.RELEASE_FLOCK_UNLOCK))
    return b""


def _clears(session: Session, request: Request, flags: int, more: int) -> bool:
    """Whether truncating on open takes suid and sgid bits away."""
    if session.uses(Init.HANDLE_KILLPRIV_V2):
        return bool(more & abi.OPEN_KILL_SUIDGID)
    # The kernel leaves it to who opens, and does not say who may keep them: root, as with
    # CAP_FSETID.
    return bool(flags & os.O_TRUNC) and request.uid != _ROOT_USER


def _opened(session: Session, number: int, handle: int, flags: int) -> bytes:
    """What OPEN answers: *handle* of inode *number*, and what the kernel may do with it."""
    fs, backing = session.fs, NONE
    if session.passes_through:
        backing = session.backings.open(number, fs.files[handle].fd)
    if backing != NONE:
        # The kernel opens the host's file with the caller's flags, and for good. O_DIRECT is taken
        # off again by who writes an odd rest, dd(1) for one; so who asks for it is served here.
        allowed = abi.FOPEN_PASSTHROUGH | (abi.FOPEN_DIRECT_IO if flags & os.O_DIRECT else 0)
    else:
        allowed = abi.FOPEN_KEEP_CACHE if fs.cache.keep_pages else 0
    if flags & os.O_ACCMODE == os.O_RDONLY and not fs.locks.used:
        # Nothing was written through it, so closing it has nothing to report; and where nobody
        # locks ranges, it drops no locks.
        allowed |= abi.FOPEN_NOFLUSH
    return wire.OPEN_OUT.pack(handle, allowed, backing)


HANDLERS: Final[Mapping[int, Handler]] = {
    Opcode.OPEN: open_,
    Opcode.CREATE: create,
    Opcode.TMPFILE: tmpfile,
    Opcode.READ: read,
    Opcode.WRITE: write,
    Opcode.FLUSH: flush,
    Opcode.FSYNC: fsync,
    Opcode.RELEASE: release,
}

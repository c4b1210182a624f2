"""Requests for what a file is."""

import errno
import stat
from collections.abc import Mapping
from typing import Final

from passthrough.identity.attributes import OMIT, PRIVILEGES, Changes
from passthrough.identity.idmap import NO_ID, ContainerId
from passthrough.linux import syscalls
from passthrough.linux.errors import os_error
from passthrough.session import abi, wire
from passthrough.session.abi import Init, Opcode
from passthrough.session.request import Request
from passthrough.session.session import Handler, Session

# What comes with a change, and is none to be made here.
_NO_CHANGE: Final = abi.FATTR_CTIME | abi.FATTR_FH | abi.FATTR_LOCKOWNER
_ROOT_USER: Final = 0
_NS_PER_S: Final = 1_000_000_000
_NOW: Final = (0, syscalls.UTIME_NOW)


def getattr_(session: Session, request: Request) -> bytes:
    """The attributes of an inode."""
    return wire.attributes(session.fs.getattr(request.nodeid))


def statx(session: Session, request: Request) -> bytes:
    """The attributes of an inode, and when it was made."""
    return wire.statx(*session.fs.statx(request.nodeid))


def syncfs(session: Session, request: Request) -> bytes:
    """Bring a file system to stable storage."""
    session.about_to_block()
    session.fs.syncfs(request.nodeid)
    return b""


def setattr_(session: Session, request: Request) -> bytes:
    """Change attributes; the change time is the host's to set."""
    fields = request.fields(wire.SETATTR_IN)
    valid, handle, size, _owner, atime, mtime, _ctime = fields[:7]
    atime_ns, mtime_ns, _ctime_ns, mode, uid, gid = fields[7:]
    if NO_ID in {valid & abi.FATTR_UID and uid, valid & abi.FATTR_GID and gid}:
        raise os_error(errno.EINVAL)  # chown(2) would leave the id as it is
    changes = Changes(
        mode=stat.S_IMODE(mode) if valid & abi.FATTR_MODE else None,
        uid=ContainerId(uid) if valid & abi.FATTR_UID else None,
        gid=ContainerId(gid) if valid & abi.FATTR_GID else None,
        size=size if valid & abi.FATTR_SIZE else None,
        atime=_time(valid, abi.FATTR_ATIME, abi.FATTR_ATIME_NOW, (atime, atime_ns)),
        mtime=_time(valid, abi.FATTR_MTIME, abi.FATTR_MTIME_NOW, (mtime, mtime_ns)),
    )
    if not valid & ~_NO_CHANGE:
        return _nothing_changed(session, request)
    found = session.fs.setattr(
        request.nodeid,
        changes,
        handle if valid & abi.FATTR_FH and handle else None,
        clear_privileges=_clears(session, request, valid),
        caller=request.caller() if valid & (abi.FATTR_SIZE | abi.FATTR_MODE) else None,
    )
    if valid & abi.FATTR_MODE and mode & PRIVILEGES:
        session.backings.note_privileges(request.nodeid)
    return wire.attributes(found)


def _nothing_changed(session: Session, request: Request) -> bytes:
    """Answer what asks for nothing: suid and sgid bits go, and the kernel believes the new mode.

    Linux sends it before a write or another change of content, also one that passes through
    (file_remove_privs(), fs/inode.c), where the caller may not keep the bits. For chown(2) without
    an owner Linux sends the same, unchecked: there only the owner and root take bits away.
    """
    fs = session.fs
    writes = fs.open_for_writing(request.nodeid)
    found = fs.setattr(
        request.nodeid,
        Changes(),
        clear_privileges=writes or _owns(session, request),
        caller=request.caller() if writes else None,
    )
    return wire.attributes(found)


def _clears(session: Session, request: Request, valid: int) -> bool:
    """Return whether suid and sgid bits go with a change.

    Without HANDLE_KILLPRIV_V2 the kernel sends the new mode along, but lets an sgid bit without
    group execution stay.
    """
    if session.uses(Init.HANDLE_KILLPRIV_V2):
        return bool(valid & abi.FATTR_KILL_SUIDGID)
    return bool(valid & abi.FATTR_SIZE) and request.uid != _ROOT_USER


def _owns(session: Session, request: Request) -> bool:
    """Return whether the caller may change the mode, as far as its user id tells."""
    found = session.fs.getattr(request.nodeid)
    owner = found.stat.st_uid if found.owner is None else found.owner.uid
    return request.uid in {_ROOT_USER, owner}


def _time(valid: int, given: int, now: int, time: tuple[int, int]) -> tuple[int, int]:
    if valid & now:
        return _NOW
    if not valid & given:
        return OMIT
    if time[1] >= _NS_PER_S:  # to utimensat(2), some of these numbers mean other things
        raise os_error(errno.EINVAL)
    return time


def access(session: Session, request: Request) -> bytes:
    """Whether the caller may do what it asks about."""
    (mask,) = request.fields(wire.ACCESS_IN)
    if not session.fs.access(request.nodeid, mask, request.caller()):
        raise os_error(errno.EACCES)
    return b""


def statfs(session: Session, request: Request) -> bytes:
    """The file system that an inode lies on."""
    return wire.statfs(session.fs.statfs(request.nodeid))


HANDLERS: Final[Mapping[int, Handler]] = {
    Opcode.GETATTR: getattr_,
    Opcode.STATX: statx,
    Opcode.SYNCFS: syncfs,
    Opcode.SETATTR: setattr_,
    Opcode.ACCESS: access,
    Opcode.STATFS: statfs,
}

"""Requests for locks, which are taken on the host's files (`locks=host`)."""

import errno
import fcntl
from collections.abc import Mapping
from typing import Final

from passthrough.linux.errors import os_error
from passthrough.linux.filecalls import Lock
from passthrough.session import abi, wire
from passthrough.session.abi import Opcode
from passthrough.session.request import Request
from passthrough.session.session import Handler, Session

# More than once: a thread that has taken a request may not have had a processor since.
_TRIES: Final = 3


def getlk(session: Session, request: Request) -> bytes:
    """What lock is in the way of one."""
    handle, owner, start, end, kind, pid, _more = request.fields(wire.LK_IN)
    found = session.fs.getlk(handle, owner, Lock(kind, start, end, pid))
    if found is None:
        return wire.LK_OUT.pack(start, end, fcntl.F_UNLCK, 0)
    return wire.LK_OUT.pack(found.start, found.end, found.kind, found.pid)


def setlk(session: Session, request: Request) -> bytes:
    """Take or drop a lock, if nothing is in the way.

    What is in the way may be gone for the kernel: it waits for nobody to answer RELEASE, which
    another thread may be at, and users count on a lock that goes when its file is closed.
    """
    for _ in range(_TRIES):
        try:
            changed = _setlk(session, request)
        except BlockingIOError:
            if not session.let_others_finish(request):
                break
        else:
            return _taken(session, request, changed=changed)
    return _taken(session, request, changed=_setlk(session, request))


def _setlk(session: Session, request: Request) -> bool:
    handle, owner, start, end, kind, pid, more = request.fields(wire.LK_IN)
    if more & abi.LK_FLOCK:
        return session.fs.flock(handle, kind)
    return session.fs.setlk(handle, owner, Lock(kind, start, end, pid))


def setlkw(session: Session, request: Request) -> bytes:
    """Take a lock as soon as nothing is in the way, or until INTERRUPT comes."""
    handle, owner, start, end, kind, pid, more = request.fields(wire.LK_IN)
    if kind == fcntl.F_UNLCK:  # as Linux sends LOCK_UN of flock(2); nothing is in the way
        _setlk(session, request)
        return b""
    number = request.unique & ~abi.UNIQUE_RESEND
    session.about_to_block()
    if not session.may_wait(request):
        raise os_error(errno.ENOLCK)
    if more & abi.LK_FLOCK:
        changed = session.fs.flock(handle, kind, number)
    else:
        changed = session.fs.setlkw(handle, owner, Lock(kind, start, end, pid), number)
    return _taken(session, request, changed=changed)


def _taken(session: Session, request: Request, *, changed: bool) -> bytes:
    """The answer to who has a lock now, after the kernel has dropped what may be older than it.

    Unless it collects writes: then nobody else is expected to write.
    """
    if changed and not session.fs.config.writeback:
        # It waits for pages that others are about to read, by requests of their own.
        session.about_to_block()
        if not session.backings.passes(request.nodeid) and not session.may_wait(request):
            _give_back(session, request)
            raise os_error(errno.ENOLCK)
        session.notifier.data_changed(request.nodeid)
    return b""


def _give_back(session: Session, request: Request) -> None:
    """Unlock what has just been locked: the kernel may still keep an older content."""
    handle, owner, start, end, _kind, pid, more = request.fields(wire.LK_IN)
    if more & abi.LK_FLOCK:
        session.fs.flock(handle, fcntl.F_UNLCK)
    else:
        session.fs.setlk(handle, owner, Lock(fcntl.F_UNLCK, start, end, pid))
    session.fs.locks.forget_content(request.nodeid)


HANDLERS: Final[Mapping[int, Handler]] = {
    Opcode.GETLK: getlk,
    Opcode.SETLK: setlk,
    Opcode.SETLKW: setlkw,
}

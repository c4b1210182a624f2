"""Requests for names in directories."""

import contextlib
import stat
from collections.abc import Mapping
from typing import Final

from passthrough.linux.syscalls import RENAME_WHITEOUT
from passthrough.session import wire
from passthrough.session.abi import Opcode
from passthrough.session.request import Request
from passthrough.session.session import Handler, Session


def lookup(session: Session, request: Request) -> bytes:
    """Find a name; that there is none may be remembered too."""
    fs = session.fs
    try:
        return wire.entry(fs.lookup(request.nodeid, request.name()))
    except FileNotFoundError:
        if not fs.cache.absent:
            raise
        return wire.absent(fs.cache.absent)


def mknod(session: Session, request: Request) -> bytes:
    """Create a file, fifo, socket or device node."""
    mode, rdev, umask = request.fields(wire.MKNOD_IN)
    session.apply_umask(umask)
    return wire.entry(
        session.fs.mknod(request.nodeid, request.name(), mode, rdev, request.caller())
    )


def mkdir(session: Session, request: Request) -> bytes:
    """Create a directory."""
    mode, umask = request.fields(wire.MKDIR_IN)
    session.apply_umask(umask)
    return wire.entry(
        session.fs.mkdir(request.nodeid, request.name(), stat.S_IMODE(mode), request.caller())
    )


def symlink(session: Session, request: Request) -> bytes:
    """Create a symlink."""
    name, target = request.names()
    return wire.entry(session.fs.symlink(request.nodeid, name, target, request.caller()))


def link(session: Session, request: Request) -> bytes:
    """Give an inode one more name."""
    (number,) = request.fields(wire.LINK_IN)
    return wire.entry(session.fs.link(number, request.nodeid, request.name()))


def unlink(session: Session, request: Request) -> bytes:
    """Take a name away."""
    session.fs.unlink(request.nodeid, request.name())
    return b""


def rmdir(session: Session, request: Request) -> bytes:
    """Remove an empty directory."""
    session.fs.rmdir(request.nodeid, request.name())
    return b""


def rename(session: Session, request: Request) -> bytes:
    """Rename without flags."""
    (new_parent,) = request.fields(wire.RENAME_IN)
    return _rename(session, request, new_parent, 0)


def rename2(session: Session, request: Request) -> bytes:
    """Rename with RENAME_* flags."""
    new_parent, flags = request.fields(wire.RENAME2_IN)
    return _rename(session, request, new_parent, flags)


def _rename(session: Session, request: Request, new_parent: int, flags: int) -> bytes:
    name, new_name = request.names()
    try:
        session.fs.rename(request.nodeid, name, new_parent, new_name, flags, request.caller())
    except OSError:
        if flags & RENAME_WHITEOUT:
            # ext4 enters the whiteout first and takes it out again when the rename is refused:
            # the times of the directories change, and the kernel forgets them on success only.
            for parent in (request.nodeid, new_parent):
                with contextlib.suppress(FileNotFoundError):  # which the kernel has forgotten
                    session.notifier.attributes_changed(parent)
        raise
    return b""


def readlink(session: Session, request: Request) -> bytes:
    """The text of a symlink."""
    return session.fs.readlink(request.nodeid)


HANDLERS: Final[Mapping[int, Handler]] = {
    Opcode.LOOKUP: lookup,
    Opcode.MKNOD: mknod,
    Opcode.MKDIR: mkdir,
    Opcode.SYMLINK: symlink,
    Opcode.LINK: link,
    Opcode.UNLINK: unlink,
    Opcode.RMDIR: rmdir,
    Opcode.RENAME: rename,
    Opcode.RENAME2: rename2,
    Opcode.READLINK: readlink,
}

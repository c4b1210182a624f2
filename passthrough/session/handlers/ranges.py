"""Requests for parts of open files, and for their flags."""

import errno
from collections.abc import Mapping
from typing import Final

from passthrough.linux.errors import os_error
from passthrough.session import abi, wire
from passthrough.session.abi import Init, Opcode
from passthrough.session.channel import MAX_WRITE
from passthrough.session.request import Request
from passthrough.session.session import Handler, Session

_ROOT_USER: Final = 0
_WORD_BITS: Final = 0xFFFF_FFFF


def fallocate(session: Session, request: Request) -> bytes:
    """Allocate, free, zero or shift a range."""
    handle, offset, length, mode = request.fields(wire.FALLOCATE_IN)
    fs, clear = session.fs, _clears(session, request)
    session.about_to_block()
    own = handle or fs.unopened(request.nodeid)
    # A file that is open has been asked about by a SETATTR.
    caller = None if handle else request.caller()
    fs.fallocate(own, mode, offset, length, clear_privileges=clear, caller=caller)
    return b""


def lseek(session: Session, request: Request) -> bytes:
    """Find data, or a hole."""
    handle, offset, whence = request.fields(wire.LSEEK_IN)
    fs = session.fs
    found = fs.lseek(handle or fs.unopened(request.nodeid), offset, whence)
    return wire.LSEEK_OUT.pack(found)


def copy_file_range(session: Session, request: Request) -> bytes:
    """Copy from one open file to another one; of the older kind, whose answer has 32 bits."""
    return wire.WRITE_OUT.pack(_copied(session, request))


def copy_file_range_64(session: Session, request: Request) -> bytes:
    """Copy from one open file to another one."""
    return wire.COPY_FILE_RANGE_OUT.pack(_copied(session, request))


def _copied(session: Session, request: Request) -> int:
    handle, offset, number, to, to_offset, length, flags = request.fields(wire.COPY_FILE_RANGE_IN)
    if flags:
        raise os_error(errno.EINVAL)
    if request.opcode == Opcode.COPY_FILE_RANGE:
        length = min(length, _WORD_BITS)
    fs, clear = session.fs, _clears(session, request)
    # The kernel has cut it to what the file has. READ and WRITE of as much do not say so either.
    if length > MAX_WRITE:
        session.about_to_block()
    return fs.copy_file_range(
        *(handle or fs.unopened(request.nodeid), offset),
        *(to or fs.unopened(number), to_offset, length),
        clear_privileges=clear,
        caller=None if to else request.caller(),
    )


def ioctl(session: Session, request: Request) -> bytes:
    """The ioctls for file flags and project ids: to change them moves the change time."""
    handle, flags, command, _arg, size, _room = request.fields(wire.IOCTL_IN)
    directory = bool(flags & abi.IOCTL_DIR)
    data = bytes(request.data(size))
    answer = session.fs.ioctl(handle, command, data, directory=directory)
    if data:
        session.forget_attributes(request.nodeid)
    return wire.IOCTL_OUT.pack(0, 0, 0, 0) + answer


def _clears(session: Session, request: Request) -> bool:
    """Whether the file loses its suid and sgid bits: the kernel leaves it to this side then."""
    return session.uses(Init.HANDLE_KILLPRIV_V2) and request.uid != _ROOT_USER


HANDLERS: Final[Mapping[int, Handler]] = {
    Opcode.FALLOCATE: fallocate,
    Opcode.LSEEK: lseek,
    Opcode.COPY_FILE_RANGE: copy_file_range,
    Opcode.COPY_FILE_RANGE_64: copy_file_range_64,
    Opcode.IOCTL: ioctl,
}

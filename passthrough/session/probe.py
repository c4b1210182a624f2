"""Asks the kernel for its INIT, by a file system that is mounted nowhere.

The kernel sends INIT as soon as a FUSE file system is made, fuse(4). It gets no answer: the end of
the descriptors ends the connection.
"""

import os
from contextlib import ExitStack
from typing import Final

from passthrough.linux import privileges
from passthrough.session import negotiation, wire
from passthrough.session.negotiation import Offer

DEVICE: Final = "/dev/fuse"
_FSTYPE: Final = b"fuse"
_HEADER_BYTES: Final = 40  # fuse_in_header
# The kernel refuses to write a request into less room, FUSE_MIN_READ_BUFFER.
_ROOM_BYTES: Final = 8192


def offered(device: str = DEVICE) -> Offer:
    """Return what the kernel offers in INIT; blocks until the kernel sends it.

    Raises:
        OSError: *device* cannot be opened, or this process may not make file systems.
    """
    with ExitStack() as stack:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        options = {b"fd": b"%d" % fd, b"rootmode": b"40000", b"user_id": b"0", b"group_id": b"0"}
        stack.callback(os.close, privileges.new_file_system(_FSTYPE, options))
        body = os.read(fd, _ROOM_BYTES)[_HEADER_BYTES:]
    # An older kernel sends a shorter INIT.
    return negotiation.offer(wire.INIT_IN.unpack(body.ljust(wire.INIT_IN.size, b"\0")))

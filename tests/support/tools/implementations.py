"""The implementations of the request path, each behind one interface of bytes.

A test that sends requests and checks answers takes the fixture `kernel` or `connect`. It then runs
once for each row of `IMPLEMENTATIONS`, and sees nothing but bytes.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from passthrough.options.effective import Effective
from passthrough.session.kernel import Served
from passthrough.session.rare import MAX_WRITE

# Larger than any request or answer. A unix(7) socket counts its bookkeeping as well.
_BUFFER_SIZE = 4 * MAX_WRITE
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h


class ByteSession(Protocol):
    """A session over one source directory, before its INIT.

    The fh counts from 1, for files and for directories.
    """

    def send(self, request: bytes) -> list[bytes]:
        """Serve *request*; return all messages that the session writes for it.

        A message is an answer, or a notification: the unique of a notification is 0.
        """

    def close(self) -> None:
        """End the session, and close all descriptors that it has opened."""


class CoreSession:
    """The compiled core, with a socket in place of /dev/fuse for notifications.

    A thread of its own serves, because serving takes capabilities from a thread.
    """

    def __init__(self, source: Path, options: Effective) -> None:
        self._kernel, self._device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._kernel, self._device):
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_SIZE)
        self._thread = ThreadPoolExecutor(1)
        self._served = Served(options, os.open(source, os.O_PATH | os.O_DIRECTORY))
        self._served.core.use_device(self._device.fileno())

    def send(self, request: bytes) -> list[bytes]:
        """As of every ByteSession."""
        reply = self._thread.submit(self.answer, request).result()
        messages = []
        with contextlib.suppress(BlockingIOError):
            while message := self._kernel.recv(_BUFFER_SIZE, socket.MSG_DONTWAIT):
                messages.append(message)
        return messages if reply is None else [*messages, reply]

    def answer(self, request: bytes) -> bytes | None:
        """Serve *request* in the session's thread; return the reply."""
        return self._served.core.answer(request)

    def close(self) -> None:
        """As of every ByteSession."""
        self._thread.shutdown()
        self._served.close()
        self._kernel.close()
        self._device.close()


IMPLEMENTATIONS: dict[str, Callable[[Path, Effective], ByteSession]] = {
    "core": CoreSession,
}

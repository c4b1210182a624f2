"""HTTP on a Unix socket."""

import http.client
import socket
import struct
from typing import Final

_UCRED: Final = struct.Struct("=iII")  # pid, uid and gid, unix(7)


class Connection(http.client.HTTPConnection):
    """A connection to the Unix socket at a path."""

    def __init__(self, path: str, limit_s: float) -> None:
        """*limit_s* is for each step: to connect, to send, and to receive."""
        super().__init__("localhost", timeout=limit_s)
        self._path = path
        self._limit_s = limit_s
        self.peer_pid = 0
        """The process that listens, in the pid namespace of this process; 0 if not visible there.

        Known once the connection is made."""

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self._limit_s)
        self.sock.connect(self._path)
        credentials = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        self.peer_pid = _UCRED.unpack(credentials)[0]

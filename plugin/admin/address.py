"""The address of a listener, as a setting has it: a Unix socket, or a TCP port; no I/O."""

import ipaddress
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

SOCKET_PATH_LIMIT_BYTES: Final = 107
"""sockaddr_un.sun_path holds 108 bytes with the final NUL, unix(7)."""
EXPECTED: Final = (
    "the absolute path of a Unix socket without '..', of at most"
    f" {SOCKET_PATH_LIMIT_BYTES} bytes, or an IP address with a port from 1 to 65535, such as"
    " 127.0.0.1:9464 or [::1]:9464"
)
_UNIX: Final = "unix:"
_LAST_PORT: Final = 65535


class TcpAddress(NamedTuple):
    """An IP address of this machine, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return the address as a setting has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Address: TypeAlias = Path | TcpAddress
"""The path of a Unix socket, or a TCP address."""


def parse(text: str) -> Address:
    """Return the address that *text* names: /PATH, unix:/PATH, IPV4:PORT or [IPV6]:PORT.

    Raises:
        ValueError: *text* is none of them; EXPECTED says what is accepted.
    """
    path = text.removeprefix(_UNIX)
    return _socket(path) if path.startswith("/") else _tcp(text)


def fits(path: str) -> bool:
    """Return whether a Unix socket can have this *path*."""
    return len(path.encode(errors="surrogateescape")) <= SOCKET_PATH_LIMIT_BYTES


def _socket(text: str) -> Path:
    path = Path(text)
    if ".." in path.parts or "\0" in text or not fits(text):
        raise ValueError(text)
    return path


def _tcp(text: str) -> TcpAddress:
    host, _, port = text.rpartition(":")
    is_v6 = host.startswith("[") and host.endswith("]")
    address = ipaddress.IPv6Address(host[1:-1]) if is_v6 else ipaddress.IPv4Address(host)
    if not (port.isascii() and port.isdecimal() and 0 < int(port) <= _LAST_PORT):
        raise ValueError(text)
    return TcpAddress(str(address), int(port))

"""The plugin's sockets: their modes, the removal of a stale one, their removal at the end.

The engine finds one socket by its path. The control socket lies in the data directory, which both
kinds of installation share with the host. The administrator chooses the address of the metrics.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from plugin.admin.address import Address, TcpAddress
from plugin.errors import CannotStart
from plugin.protocol import CONTROL_SOCKET

log = logging.getLogger(__name__)

# At its start dockerd asks about all of its volumes at once.
BACKLOG = 512
# Mode 0660: a user that can talk to the plugin can mount any directory of the host.
SOCKET_UMASK = 0o117
# Mode 0600.
CONTROL_UMASK = 0o177
# For the answer of another process that listens on our socket already.
PROBE_S = 1.0


@contextmanager
def listening(
    path: Path, inherited: socket.socket | None = None, umask: int = SOCKET_UMASK
) -> Iterator[socket.socket]:
    """Listen at *path*, and at the end remove the socket if it is still ours.

    At the end an *inherited* socket is closed, but its path stays, because the service manager goes
    on listening there.

    Raises:
        CannotStart: another process listens there, or *path* is no socket.
    """
    if inherited is not None:
        with inherited:
            yield inherited
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        former = os.umask(umask)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(former)
        # Without delay: until listen(2), another plugin would take the socket for a stale one.
        listener.listen(BACKLOG)
        ours = path.lstat()
        try:
            yield listener
        finally:
            try:
                if os.path.samestat(ours, path.lstat()):
                    path.unlink()
            except FileNotFoundError:
                log.info("another process has removed %s", path)


@contextmanager
def controlling(data_dir: Path) -> Iterator[socket.socket | None]:
    """Listen on the control socket in *data_dir*.

    If no process can listen there, as on a file system without sockets, log a warning and yield
    None: volumes are served nevertheless.
    """
    with ExitStack() as stack:
        # A path may have more than the 107 bytes that the address of a socket has room for.
        fd = os.open(data_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        listener: socket.socket | None = None
        try:
            path = Path(f"/proc/self/fd/{fd}", CONTROL_SOCKET)
            listener = stack.enter_context(listening(path, umask=CONTROL_UMASK))
        except (CannotStart, OSError) as error:
            where = data_dir / CONTROL_SOCKET
            log.warning("no `passfs` command will reach this plugin by %s: %s", where, error)
        yield listener


@contextmanager
def exporting(address: Address | None) -> Iterator[socket.socket | None]:
    """Listen for metrics at *address*; in a directory with the setgid bit, for its group as well.

    If that is not possible, log a warning and yield None: volumes are served nevertheless.
    """
    with ExitStack() as stack:
        listener: socket.socket | None = None
        try:
            if isinstance(address, Path):
                listener = stack.enter_context(listening(address))
            elif address is not None:
                listener = stack.enter_context(_tcp_listener(address))
        except (CannotStart, OSError) as error:
            log.warning("no metrics at %s: %s", address, error)
        yield listener


def _tcp_listener(address: TcpAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return socket.create_server(address, family=family, backlog=BACKLOG)


def _remove_stale(path: Path) -> None:
    """Remove a socket that no process listens on; refuse any other file at *path*."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(os.fspath(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            if path.is_socket():
                path.unlink()
                return
            reason = "it is no socket; move it away"
        except TimeoutError:
            reason = "another plugin listens on it, but does not answer; stop it first"
        else:
            reason = "another plugin listens on it; stop it first"
    raise CannotStart(f"cannot use {path}: {reason}")

"""The plugin's Unix socket: its mode, the removal of a stale one, its own removal at the end."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plugin.errors import CannotStart

log = logging.getLogger(__name__)

# At its start dockerd asks about all of its volumes at once.
BACKLOG = 512
# Mode 0660: a user that can talk to the plugin can mount any directory of the host.
SOCKET_UMASK = 0o117
# For the answer of another process that listens on our socket already.
PROBE_S = 1.0


@contextmanager
def listening(path: Path, inherited: socket.socket | None = None) -> Iterator[socket.socket]:
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
        umask = os.umask(SOCKET_UMASK)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(umask)
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

"""The service on the host: its unit, systemctl(1), and the question which program serves."""

import errno
import http.client
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from plugin.commands.connection import Connection
from plugin.install.installation import InstallationError
from plugin.protocol import CONTENT_TYPE, ProgramsReply

UNIT: Final = "passfs.service"
SOCKET: Final = "passfs.socket"
# systemd waits for READY=1, and for the end of the former process: TimeoutStopSec= of the unit.
_LIMIT_S: Final = 120.0
_ANSWER_S: Final = 10.0


def unit_path() -> Path | None:
    """Return the path of the installed unit, or None if there is none.

    Raises:
        InstallationError: systemd does not answer.
    """
    try:
        state = _show(UNIT, "LoadState")
    except FileNotFoundError:
        return None
    path = _show(UNIT, "FragmentPath")
    return Path(path) if state == "loaded" and path else None


def active_state() -> str:
    """Return the state of the service, such as "active", "inactive" or "failed".

    Raises:
        InstallationError: systemd does not answer.
    """
    return _show(UNIT, "ActiveState")


def socket_path(default: str) -> str:
    """Return the path of the plugin's socket: that of the socket unit, or *default*."""
    listens = _show(SOCKET, "Listen")  # such as "/run/docker/plugins/passfs.sock (Stream)"
    return listens.rpartition(" (")[0] or default


def restart() -> None:
    """Read the units again, and restart the service; return once it is ready.

    Raises:
        InstallationError: it does not start.
    """
    _systemctl("daemon-reload")
    _systemctl("restart", UNIT)


def programs(path: str) -> ProgramsReply:
    """Ask the plugin at the socket *path* for the programs that serve its volumes.

    Raises:
        OSError: it does not answer.
        InstallationError: it answers something else.
    """
    connection = Connection(path, _ANSWER_S)
    try:
        connection.request("POST", "/Passfs.Programs", b"{}", {"Content-Type": CONTENT_TYPE})
        body = connection.getresponse().read()
        return msgspec.json.decode(body, type=ProgramsReply)
    except (http.client.RemoteDisconnected, http.client.IncompleteRead) as error:
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error
    except (http.client.HTTPException, msgspec.DecodeError) as error:
        raise InstallationError(
            f"the plugin at {path} does not say which program serves its volumes: {error}. Does"
            f" {UNIT} start this program?"
        ) from error
    finally:
        connection.close()


def _show(unit: str, name: str) -> str:
    return _systemctl("show", "--value", f"--property={name}", unit).strip()


def _systemctl(*words: str) -> str:
    command: Sequence[str] = ("systemctl", *words)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InstallationError(
            f"`{' '.join(command)}` has not ended within {_LIMIT_S:g} s; `journalctl -u passfs` has"
            " the log."
        ) from error
    if done.returncode != 0:
        raise InstallationError(
            f"`{' '.join(command)}` failed: {done.stderr.strip()} `journalctl -u passfs` has the"
            " log."
        )
    return done.stdout

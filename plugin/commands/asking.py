"""Questions to the plugin, by the control socket in its data directory."""

import http.client
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

import msgspec

from plugin.commands.connection import Connection
from plugin.protocol import CONTROL_SOCKET, ErrorReply

T = TypeVar("T")

ANSWER_S: Final = 10.0
"""The plugin answers from memory, in milliseconds."""


class CommandError(Exception):
    """An error that the user of the command can act on; str() is the whole sentence."""


class Plugin:
    """The plugin with one data directory."""

    def __init__(self, data_dir: str) -> None:
        self.directory = data_dir
        self.pid = 0
        """Its process id on this host after the first answer; 0 if it is not visible."""

    def ask(
        self,
        path: str,
        kind: type[T],
        method: str = "GET",
        limit_s: float = ANSWER_S,
        body: Mapping[str, object] | None = None,
    ) -> T:
        """Return the answer of type *kind*; *body* is sent as JSON.

        Raises:
            CommandError: no plugin answers, or it refuses.
        """
        socket = str(Path(self.directory, CONTROL_SOCKET))
        try:
            content = None if body is None else msgspec.json.encode(body)
        except UnicodeEncodeError as error:
            raise CommandError("a word of the command is not UTF-8.") from error
        try:
            status, answer = self._exchange(method, path, limit_s, content)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            raise CommandError(
                f"no plugin listens at {socket}. Is passfs running? --data-dir names the data"
                " directory of another plugin."
            ) from error
        except PermissionError as error:
            raise CommandError(
                f"{socket} is for the user of the plugin alone; run this command as root."
            ) from error
        except TimeoutError as error:
            raise CommandError(
                f"the plugin at {socket} has not answered within {limit_s:g} s."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise CommandError(
                f"the plugin at {socket} has closed the connection: it ends, or this process is not"
                " root there."
            ) from error
        try:
            if status == http.HTTPStatus.OK:
                return msgspec.json.decode(answer, type=kind)
            reason = msgspec.json.decode(answer, type=ErrorReply).err
        except msgspec.DecodeError as error:
            raise CommandError(
                f"the plugin at {socket} is of another version than this command: {error}."
            ) from error
        raise CommandError(f"{reason}.")

    def _exchange(
        self, method: str, path: str, limit_s: float, body: bytes | None
    ) -> tuple[int, bytes]:
        with (
            _reachable(self.directory) as socket,
            closing(Connection(socket, limit_s)) as connection,
        ):
            connection.request(method, path, body)
            self.pid = connection.peer_pid
            response = connection.getresponse()
            return response.status, response.read()


def path_of(volume: str, *more: str) -> str:
    """Return the path of the answer about *volume*."""
    return "/".join(["/volumes", quote(os.fsencode(volume), safe=""), *more])


@contextmanager
def _reachable(directory: str) -> Iterator[str]:
    """Yield a path of the control socket that fits into the 107 bytes of its address."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{CONTROL_SOCKET}"
    finally:
        os.close(fd)

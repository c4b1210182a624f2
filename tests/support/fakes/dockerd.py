"""A fake dockerd, which calls the plugin over its socket with the engine's headers.

`plugin` runs a plugin for it in this process.
"""

import contextlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h11
import trio

from passthrough.linux import mountinfo
from passthrough.linux.mountinfo import FSTYPE
from plugin.admin.settings import Settings
from plugin.api.server import serve
from plugin.app import composed
from plugin.mounting.spawner import COMMAND

HEADERS = (
    ("Host", "plugin.moby.localhost"),
    ("User-Agent", "Go-http-client/1.1"),
    ("Accept", "application/vnd.docker.plugins.v1.2+json"),
)
# No answer takes as long, unless the plugin hangs.
ANSWER_DEADLINE_S = 40.0


class Answer(NamedTuple):
    """The answer to one request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return the body, which is always JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """Return the message of a refusal."""
        assert self.status != 200, self
        message = self.json["Err"]
        assert isinstance(message, str)
        return message


class Connection:
    """One connection to the plugin, kept alive between requests."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def request(
        self, path: str, body: bytes = b"{}\n", method: str = "POST", headers: Any = HEADERS
    ) -> Answer:
        """Send one request and wait for its answer."""
        await self.send(path, body, method, headers)
        return await self.answer()

    async def send(
        self, path: str, body: bytes = b"{}\n", method: str = "POST", headers: Any = HEADERS
    ) -> None:
        """Send one request, without waiting for its answer."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        length = ("Content-Length", str(len(body)))
        request = h11.Request(method=method, target=path, headers=[*headers, length])
        sent = (
            (self._http.send(request) or b"")
            + (self._http.send(h11.Data(data=body)) or b"")
            + (self._http.send(h11.EndOfMessage()) or b"")
        )
        with contextlib.suppress(trio.BrokenResourceError):  # refused before the end of the request
            await self.stream.send_all(sent)

    async def answer(self) -> Answer:
        """Wait for the answer to the request sent last."""
        response: h11.Response | None = None
        body = b""
        with trio.fail_after(ANSWER_DEADLINE_S):
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._http.receive_data(await self.stream.receive_some())
                elif isinstance(event, h11.Response):
                    response = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                else:
                    break
        assert response is not None, event
        headers = {name.decode(): value.decode() for name, value in response.headers}
        return Answer(response.status_code, headers, body)


class Dockerd:
    """The engine's side of the plugin's socket; like the engine, it opens many connections."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Open a connection, and close it at the end."""
        async with await trio.open_unix_socket(str(self.socket)) as stream:
            yield Connection(stream)

    async def call(self, verb: str, **fields: object) -> Answer:
        """Call *verb* of the volume driver on a new connection."""
        async with self.connection() as connection:
            body = json.dumps(fields).encode() + b"\n"
            return await connection.request(f"/VolumeDriver.{verb}", body)

    async def do(self, verb: str, **fields: object) -> Any:
        """Call *verb*, which must succeed; return the reply."""
        answer = await self.call(verb, **fields)
        assert answer.status == 200, answer
        assert not answer.json.get("Err")
        return answer.json

    async def volume(self, name: str) -> Any:
        """Return the volume *name* as Get describes it."""
        return (await self.do("Get", Name=name))["Volume"]

    async def references(self, name: str) -> int:
        """Return the count of references to the volume *name*."""
        count = (await self.volume(name))["Status"]["references"]
        assert isinstance(count, int)
        return count

    async def names(self) -> set[str]:
        """Return the names of the volumes in List."""
        return {volume["Name"] for volume in (await self.do("List"))["Volumes"]}


def settings(directory: Path, **environment: str) -> Settings:
    """Return the settings of a plugin with socket, data and mounts below *directory*."""
    own = {"SOCKET": "p.sock", "DATA_DIR": "data", "MOUNT_DIR": "mounts"}
    ours = {f"PASSFS_{name}": str(directory / place) for name, place in own.items()}
    return Settings.from_environment(ours | environment)


def mounted(directory: Path) -> list[str]:
    """Return the names of the passfs mounts below *directory*, one for each mount."""
    above = os.fsencode(directory)
    return sorted(
        os.path.basename(os.fsdecode(entry.target))
        for entry in mountinfo.read()
        if entry.fstype == FSTYPE and mountinfo.is_below(entry.target, above)
    )


@asynccontextmanager
async def plugin(
    directory: Path, worker: Sequence[str] = COMMAND, **environment: str
) -> AsyncIterator[Dockerd]:
    """Run a plugin in this process; yield its engine. The next plugin finds its data."""
    stop = trio.Event()
    async with (
        composed(settings(directory, **environment), worker) as (driver, _, listener),
        trio.open_nursery() as own,
    ):
        own.start_soon(serve, driver, listener, stop.wait)
        try:
            yield Dockerd(directory / "p.sock")
        finally:
            stop.set()

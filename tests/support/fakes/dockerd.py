"""A fake dockerd: speaks to the plugin over its socket as the engine does, with its headers.

And the plugin to speak to, in this process, for the length of a block.
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
# Far more than any answer takes; only a plugin that hangs comes near it.
ANSWER_DEADLINE_S = 40.0


class Answer(NamedTuple):
    """What came back for one request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which is always JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of a refusal."""
        assert self.status != 200, self
        sentence = self.json["Err"]
        assert isinstance(sentence, str)
        return sentence


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
        """Send one request and do not wait."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        length = ("Content-Length", str(len(body)))
        request = h11.Request(method=method, target=path, headers=[*headers, length])
        said = (
            (self._http.send(request) or b"")
            + (self._http.send(h11.Data(data=body)) or b"")
            + (self._http.send(h11.EndOfMessage()) or b"")
        )
        with contextlib.suppress(trio.BrokenResourceError):  # refused before it was all said
            await self.stream.send_all(said)

    async def answer(self) -> Answer:
        """Wait for the answer to what has been sent."""
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
        """A connection, closed at the end."""
        async with await trio.open_unix_socket(str(self.socket)) as stream:
            yield Connection(stream)

    async def call(self, verb: str, **fields: object) -> Answer:
        """Call *verb* of the volume driver on a connection of its own."""
        async with self.connection() as connection:
            body = json.dumps(fields).encode() + b"\n"
            return await connection.request(f"/VolumeDriver.{verb}", body)

    async def do(self, verb: str, **fields: object) -> Any:
        """Call *verb* and expect it to succeed; gives the reply."""
        answer = await self.call(verb, **fields)
        assert answer.status == 200, answer
        assert not answer.json.get("Err")
        return answer.json

    async def volume(self, name: str) -> Any:
        """What Get says of the volume *name*."""
        return (await self.do("Get", Name=name))["Volume"]

    async def references(self, name: str) -> int:
        """How many users the plugin counts for the volume *name*."""
        count = (await self.volume(name))["Status"]["references"]
        assert isinstance(count, int)
        return count

    async def names(self) -> set[str]:
        """The volumes that List knows."""
        return {volume["Name"] for volume in (await self.do("List"))["Volumes"]}


def settings(directory: Path, **environment: str) -> Settings:
    """Settings of a plugin that has all that is its own below *directory*."""
    own = {"SOCKET": "p.sock", "DATA_DIR": "data", "MOUNT_DIR": "mounts"}
    ours = {f"PASSFS_{name}": str(directory / place) for name, place in own.items()}
    return Settings.from_environment(ours | environment)


def mounted(directory: Path) -> list[str]:
    """The names of the mounts of passfs below *directory*, as often as they are there."""
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
    """A plugin in this process, and its engine; what it kept is there for the next one."""
    stop = trio.Event()
    async with (
        composed(settings(directory, **environment), worker) as (driver, listener),
        trio.open_nursery() as own,
    ):
        own.start_soon(serve, driver, listener, stop.wait)
        try:
            yield Dockerd(directory / "p.sock")
        finally:
            stop.set()

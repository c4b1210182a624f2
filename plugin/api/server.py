"""The plugin's sockets, and the one place where an exception becomes a reply.

The engine's socket has the verbs of the volume plugin protocol. The control socket has the answers
to the `passfs` command (answers.py), for root alone. The address of the metrics has two pages, for
every process that can connect.

A refusal (`PluginError`) is answered with its own status and message. Any other exception is a bug:
the server answers 500, logs the traceback and goes on.
"""

import logging
import math
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
import trio

from plugin.api.answers import ANSWERS, BODIES, Answer, Answers
from plugin.api.connection import Connection, HungUp
from plugin.api.verbs import VERBS, Perform, Verb
from plugin.errors import NoSuchMethod, NoSuchPath, PluginError, quoted
from plugin.metrics.metrics import Metrics
from plugin.protocol import (
    CONTENT_TYPE,
    EmptyRequest,
    ErrorReply,
    MountRequest,
    Reply,
    Request,
    VolumeRequest,
)
from plugin.volumes.driver import Driver

log = logging.getLogger(__name__)

# dockerd keeps idle connections for 30 s, and its request fails if we close one under it.
KEEP_ALIVE_S = 75.0
# At shutdown, for requests in flight. The engine kills a plugin after 10 s, and detaching the
# mounts needs most of that time.
DRAIN_S = 1.5
# Of the clients of the metrics, which nothing else limits: connections at once, and seconds for a
# request with its reply.
METRICS_CLIENTS = 16
METRICS_S = 30.0
# struct ucred of unix(7): pid, uid and gid of the process that has connected.
UCRED = struct.Struct("=iII")


class Endpoint(NamedTuple):
    """The answer to the requests with one method, at one path or at one path for each volume."""

    parse: Callable[[str, bytes], Request]
    """Returns the request, given the name in the path (else empty) and the body."""
    perform: Callable[[Any, Connection], Awaitable[Reply]]
    """Answers a request that has come by a connection."""


Endpoints = Mapping[tuple[str, str], Endpoint]
"""By method and path. `{name}` in a path stands for the URL-quoted name of a volume."""


class Terms(NamedTuple):
    """The terms on which a socket serves its clients."""

    on_probe: Callable[[float], None] = lambda _: None
    """Called for each connection that a client has closed without sending a byte, with the seconds
    that it was open."""
    admits: Callable[[trio.socket.SocketType], bool] = lambda _: True
    """A connection is closed at once if the result is False."""
    clients: float = math.inf
    """Further connections are closed at once."""
    limit_s: float = math.inf
    """If finite, a connection has one request, and is closed after so many seconds."""


async def serve(
    driver: Driver,
    listener: socket.socket,
    stopped: Callable[[], Awaitable[None]],
    on_probe: Callable[[float], None] = lambda _: None,
) -> None:
    """Answer requests of an engine on *listener* until *stopped* returns, then close *listener*.

    Call *on_probe* for each connection that a client has closed without sending a byte, with the
    seconds that it was open.
    """
    endpoints = {
        ("POST", path): Endpoint(partial(_parse, verb), partial(_perform, driver, verb))
        for path, verb in VERBS.items()
    }
    await _serve(endpoints, listener, stopped, Terms(on_probe=on_probe))


async def control(answers: Answers, listener: socket.socket) -> None:
    """Answer the `passfs` command on *listener*, until cancelled."""
    endpoints = {
        key: Endpoint(partial(_named, BODIES.get(key)), partial(_answer, answers, answer))
        for key, answer in ANSWERS.items()
    }
    await _serve(endpoints, listener, trio.sleep_forever, Terms(admits=_is_root))


async def export(metrics: Metrics, listener: socket.socket) -> None:
    """Answer scrapes of *metrics*, and checks of the plugin's health, until cancelled."""
    endpoints = {
        ("GET", "/metrics"): Endpoint(_nothing, lambda _, client: metrics.scrape(client.accept)),
        ("GET", "/health"): Endpoint(_nothing, lambda *_: metrics.health()),
    }
    terms = Terms(clients=METRICS_CLIENTS, limit_s=METRICS_S)
    await _serve(endpoints, listener, trio.sleep_forever, terms)


async def _serve(
    endpoints: Endpoints,
    listener: socket.socket,
    stopped: Callable[[], Awaitable[None]],
    terms: Terms,
) -> None:
    server = _Server(endpoints)

    async def handle(stream: trio.SocketStream) -> None:
        opened = trio.current_time()
        connection = Connection(stream, is_single=terms.limit_s < math.inf)
        try:
            if len(connections.child_tasks) <= terms.clients and terms.admits(stream.socket):
                with trio.move_on_after(terms.limit_s):
                    await server.converse(connection)
        except HungUp:
            if connection.is_silent:
                terms.on_probe(trio.current_time() - opened)
        except Exception:  # a bug, which must not end the other connections
            log.exception("a connection has failed")

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
            accepting.start_soon(
                partial(trio.serve_listeners, handle, listeners, handler_nursery=connections)
            )
            await stopped()
            accepting.cancel_scope.cancel()
        server.end()
        connections.cancel_scope.deadline = trio.current_time() + DRAIN_S


class _Server:
    """The connections of one socket."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._idle: set[trio.CancelScope] = set()  # connections that wait for a request
        self._ending = False

    def end(self) -> None:
        """End idle connections now, and the others after their replies."""
        self._ending = True
        for scope in self._idle:
            scope.cancel()

    async def converse(self, connection: Connection) -> None:
        """Answer the requests of a client, until it has been idle for KEEP_ALIVE_S.

        Raises:
            HungUp: the client has closed the connection.
        """
        while not self._ending and await self._next_request(connection):
            await _reply(self._endpoints, connection)
            if not connection.can_go_on():
                return

    async def _next_request(self, connection: Connection) -> bool:
        """Wait for a request, and return whether it has come; refuse a malformed one."""
        with trio.move_on_after(KEEP_ALIVE_S) as scope:
            self._idle.add(scope)
            try:
                await connection.head()
            except PluginError as error:
                await connection.reply(error.status, [*ErrorReply(err=str(error)).pieces()])
            else:
                return True
            finally:
                self._idle.remove(scope)
        return False


async def _reply(endpoints: Endpoints, connection: Connection) -> None:
    """Answer the present request of *connection*, with a refusal if need be."""
    started = trio.current_time()
    subject, status, form = "-", 200, CONTENT_TYPE
    try:
        body = await connection.body()
        endpoint, name = _endpoint(endpoints, connection.method, connection.path)
        call = endpoint.parse(name, body)
        subject = call.subject
        reply = await endpoint.perform(call, connection)
        form, pieces = reply.content_type, [*reply.pieces()]
    except HungUp:
        raise
    except PluginError as error:
        status, pieces = error.status, [ErrorReply(err=str(error)).encode()]
    except Exception:  # the boundary: any other exception is a bug, and ends this request only
        log.exception("bug in %s %s", connection.path, subject)
        status = 500
        pieces = [ErrorReply(err="internal error; the plugin's log says more").encode()]
    duration_ms = 1000 * (trio.current_time() - started)
    log.debug("%s %s: %d in %.1f ms", connection.path, subject, status, duration_ms)
    await connection.reply(status, pieces, form)


def _endpoint(endpoints: Endpoints, method: str, path: str) -> tuple[Endpoint, str]:
    """Return the endpoint of a request, and the name of the volume in its path, if there is one.

    Raises:
        NoSuchPath: no endpoint has this path.
        NoSuchMethod: only endpoints with other methods have it.
    """
    found = {
        own: (endpoint, name)
        for (own, pattern), endpoint in endpoints.items()
        if (name := _name(pattern, path)) is not None
    }
    if not found:
        raise NoSuchPath(f"{method} {quoted(path)}: not found")
    if method not in found:
        raise NoSuchMethod(f"{method} {quoted(path)}: method not allowed")
    return found[method]


def _name(pattern: str, path: str) -> str | None:
    """Return the name that *path* has in place of `{name}`, "" without one, None if they differ."""
    before, variable, after = pattern.partition("{name}")
    if not variable:
        return "" if path == pattern else None
    name = path.removeprefix(before).removesuffix(after)
    if not name or "/" in name or path != before + name + after:
        return None
    return unquote(name)


def _is_root(client: trio.socket.SocketType) -> bool:
    """Return whether the process that has connected is root's, in the plugin's user namespace."""
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    return bool(UCRED.unpack(credentials)[1] == 0)


def _nothing(_: str, __: bytes) -> EmptyRequest:
    return EmptyRequest()


def _named(kind: type[VolumeRequest] | None, name: str, body: bytes) -> VolumeRequest:
    """Return the request about the volume *name*; *kind* is None if it has no body."""
    if kind is None:
        return VolumeRequest(name=name)
    return msgspec.structs.replace(kind.parse(body), name=name)


async def _answer(answers: Answers, answer: Answer, call: VolumeRequest, _: Connection) -> Reply:
    return await answer(answers, call)


def _parse(verb: Verb, _: str, body: bytes) -> Request:
    return verb.request.parse(body)


async def _perform(driver: Driver, verb: Verb, call: Any, connection: Connection) -> Reply:  # noqa: ANN401 - of the verb's type
    """Perform *verb*; if it has an undo and the client hangs up meanwhile, undo it.

    A verb is never cancelled when its client hangs up. It runs to its end, and so does its undo.
    """
    if verb.undo is None:
        return await verb.perform(driver, call)
    hung_up = trio.Event()
    refusal: PluginError | None = None
    reply = Reply()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_client, connection, hung_up)
        try:
            reply = await verb.perform(driver, call)
        except PluginError as error:
            refusal = error  # raised below: the nursery would wrap it into an exception group
        nursery.cancel_scope.cancel()
    if hung_up.is_set():
        log.info("volume %s: the client of %s has hung up", call.name, connection.path)
        if refusal is None:
            await _undo(driver, verb.undo, call)
        raise HungUp
    if refusal is not None:
        raise refusal
    return reply


async def _watch_client(connection: Connection, hung_up: trio.Event) -> None:
    await connection.wait_for_hangup()
    hung_up.set()


async def _undo(driver: Driver, undo: Perform, call: MountRequest) -> None:
    """Undo a verb after its client has hung up; log a refusal, because no client waits for it."""
    try:
        await undo(driver, call)
    except PluginError as error:
        log.warning("volume %s: a Mount cannot be undone: %s", call.name, error)

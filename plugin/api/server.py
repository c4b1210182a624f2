"""HTTP on the plugin's Unix sockets, and the one place where an exception becomes a reply.

The engine's socket has the verbs of the volume plugin protocol. The control socket has the answers
to the `passfs` command (answers.py), for root alone.

A refusal (`PluginError`) is answered with its own status and message. Any other exception is a bug:
the server answers 500, logs the traceback and goes on.
"""

import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import TypeVar, cast
from urllib.parse import unquote

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from plugin.api.answers import ANSWERS, Answer, Answers
from plugin.api.verbs import VERBS, Perform, Verb
from plugin.errors import PluginError, RequestTimeout, RequestTooLarge, quoted
from plugin.protocol import CONTENT_TYPE, ErrorReply, Reply, Request as VerbRequest, VolumeRequest
from plugin.volumes.driver import Driver

log = logging.getLogger(__name__)

C = TypeVar("C", bound=VerbRequest)

# A request with hundreds of options stays far below this limit.
BODY_LIMIT_BYTES = 1 << 20
# dockerd sends a request in one piece; the deadline is for a client that stops in the middle.
BODY_DEADLINE_S = 30.0
# dockerd keeps idle connections for 30 s, and its request fails if we close one under it.
KEEP_ALIVE_S = 75.0
# At shutdown, for requests in flight. The engine kills a plugin after 10 s, and detaching the
# mounts needs most of that time.
DRAIN_S = 1.5
# Pieces of a body that hypercorn queues for us. If the queue is full, hypercorn waits, and it would
# wait for ever once we have refused the body and stopped reading. hypercorn reads up to 64 KiB at
# once, so the queue takes bodies of up to 256 MiB.
BODY_QUEUE = 4096
# struct ucred of unix(7): pid, uid and gid of the process that has connected.
UCRED = struct.Struct("=iII")


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
    await _serve(application(driver), listener, stopped, on_probe)


async def control(answers: Answers, listener: socket.socket) -> None:
    """Answer the `passfs` command on *listener*, until cancelled."""
    await _serve(_control_application(answers), listener, trio.sleep_forever, admits=_is_root)


async def _serve(
    application: ASGIApp,
    listener: socket.socket,
    stopped: Callable[[], Awaitable[None]],
    on_probe: Callable[[float], None] = lambda _: None,
    admits: Callable[[trio.socket.SocketType], bool] = lambda _: True,
) -> None:
    """Serve *application*; close a connection at once that *admits* returns False for.

    hypercorn.trio.serve does the same, but cannot take a `Connection`.
    """
    config = HypercornConfig()
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.max_app_queue_size = BODY_QUEUE
    config.errorlog = logging.getLogger("hypercorn")
    # Starlette types its scopes more loosely than hypercorn does.
    app = ASGIWrapper(cast("ASGIFramework", application))
    context = WorkerContext(max_requests=None)

    async def handle(stream: trio.SocketStream) -> None:
        if not admits(stream.socket):
            await stream.aclose()
            return
        state = ConnectionState({})
        opened = trio.current_time()
        # hypercorn annotates the stream as one of TLS; it takes both.
        connection = Connection(app, config, context, state, stream)  # type: ignore[arg-type]
        await connection.run()
        if connection.sent_nothing:
            on_probe(trio.current_time() - opened)

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
            accepting.start_soon(
                partial(trio.serve_listeners, handle, listeners, handler_nursery=connections)
            )
            await stopped()
            accepting.cancel_scope.cancel()
        await context.terminated.set()  # idle connections end
        connections.cancel_scope.deadline = trio.current_time() + DRAIN_S


class Connection(TCPServer):
    """hypercorn's side of one connection, which ends when its client hangs up.

    hypercorn keeps a connection until its keep-alive time is over, even after the client has hung
    up. In hypercorn, an exception in one connection ends all connections, and a client that hangs
    up at the wrong time can cause an exception.
    """

    sent_nothing = False
    """Whether the client has hung up without sending a byte."""

    async def run(self) -> None:
        """Serve the connection to its end."""
        try:
            await super().run()
        except* Exception as errors:
            log.exception("a connection has failed", exc_info=errors)

    async def _read_data(self) -> None:
        with suppress(trio.ClosedResourceError, OSError):  # the read below meets the same error
            self.sent_nothing = not await self.stream.socket.recv(1, socket.MSG_PEEK)
        await super()._read_data()
        await self.idle_task.stop()


class NoReply(Response):
    """No answer, for a client that has hung up: hypercorn fails if it is asked to write then."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send nothing."""


class StreamedReply(Response):
    """A reply sent in pieces; between two of them the server answers other requests."""

    def __init__(self, pieces: Sequence[bytes], status: int) -> None:
        length = {"content-length": str(sum(map(len, pieces)))}
        super().__init__(None, status, length, CONTENT_TYPE)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all pieces; it is no error if the client has hung up."""
        del scope, receive
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def application(driver: Driver) -> Starlette:
    """Return the verbs of *driver* at their paths; refuse all other paths and methods in JSON."""
    return _routed(
        Route(
            path, _endpoint(path, _parsed(verb), partial(_perform, driver, verb)), methods=["POST"]
        )
        for path, verb in VERBS.items()
    )


def _control_application(answers: Answers) -> ASGIApp:
    """Return the routes of the control socket. The names of volumes in them are URL-quoted."""

    async def perform(answer: Answer, call: VolumeRequest, _: Request) -> Reply:
        return await answer(answers, call)

    routed = _routed(
        Route(
            path, _endpoint(f"{method} {path}", _named, partial(perform, answer)), methods=[method]
        )
        for (method, path), answer in ANSWERS.items()
    )

    async def quoted_paths(scope: Scope, receive: Receive, send: Send) -> None:
        """Leave the path quoted: a name may have a slash."""
        if "raw_path" in scope:
            scope["path"] = scope["raw_path"].decode("ascii", "replace")
        await routed(scope, receive, send)

    return quoted_paths


def _routed(routes: Iterable[Route]) -> Starlette:
    app = Starlette(routes=[*routes], exception_handlers={HTTPException: _refuse_route})
    app.router.redirect_slashes = False
    return app


def _is_root(client: trio.socket.SocketType) -> bool:
    """Return whether the process that has connected is root's, in the plugin's user namespace."""
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    return bool(UCRED.unpack(credentials)[1] == 0)


def _parsed(verb: Verb) -> Callable[[Request], Awaitable[VerbRequest]]:
    async def read(request: Request) -> VerbRequest:
        return verb.request.parse(await _body(request))

    return read


async def _named(request: Request) -> VolumeRequest:
    """Return the request for the volume that the path names, if it names one."""
    return VolumeRequest(name=unquote(request.path_params.get("name", "")))


def _endpoint(
    path: str,
    read: Callable[[Request], Awaitable[C]],
    perform: Callable[[C, Request], Awaitable[Reply]],
) -> Callable[[Request], Awaitable[Response]]:
    """Return the function that answers the requests at *path*: *read* parses, *perform* acts."""

    async def answer(request: Request) -> Response:
        started = trio.current_time()
        subject = "-"
        try:
            call = await read(request)
            subject = call.subject
            response = _response(await perform(call, request))
        except ClientDisconnect:
            response = NoReply()
        except PluginError as error:
            response = _response(ErrorReply(err=str(error)), error.status)
        except Exception:  # the boundary: any other exception is a bug, and ends this request only
            log.exception("bug in %s %s", path, subject)
            response = _response(ErrorReply(err="internal error; the plugin's log says more"), 500)
        duration_ms = 1000 * (trio.current_time() - started)
        log.debug("%s %s: %d in %.1f ms", path, subject, response.status_code, duration_ms)
        return response

    return answer


async def _body(request: Request) -> bytes:
    """Return the body.

    Raises:
        RequestTooLarge: it is longer than BODY_LIMIT_BYTES.
        RequestTimeout: it has not ended after BODY_DEADLINE_S.
    """
    body = b""
    try:
        with trio.fail_after(BODY_DEADLINE_S):
            async with aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > BODY_LIMIT_BYTES:
                        raise RequestTooLarge(f"the body is longer than {BODY_LIMIT_BYTES} bytes")
    except trio.TooSlowError as error:
        raise RequestTimeout(f"the body has not ended within {BODY_DEADLINE_S:g} s") from error
    return body


async def _perform(driver: Driver, verb: Verb, call: VerbRequest, request: Request) -> Reply:
    """Perform *verb*; if it has an undo and the client hangs up meanwhile, undo it.

    A verb is never cancelled when its client hangs up. It runs to its end, and so does its undo.
    """
    if verb.undo is None:
        return await verb.perform(driver, call)
    disconnected = trio.Event()
    refusal: PluginError | None = None
    reply = Reply()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_client, request, disconnected)
        try:
            reply = await verb.perform(driver, call)
        except PluginError as error:
            refusal = error  # raised below: the nursery would wrap it into an exception group
        nursery.cancel_scope.cancel()
    if disconnected.is_set():
        log.info("the client of %s %s has hung up", request.url.path, call.subject)
        if refusal is None:
            await _undo(driver, verb.undo, call)
        raise ClientDisconnect
    if refusal is not None:
        raise refusal
    return reply


async def _undo(driver: Driver, undo: Perform, call: VerbRequest) -> None:
    """Undo a verb after its client has hung up; log a refusal, because no client waits for it."""
    try:
        await undo(driver, call)
    except PluginError as error:
        log.warning("%s: cannot be undone: %s", call.subject, error)


async def _watch_client(request: Request, disconnected: trio.Event) -> None:
    """Set *disconnected* when the client hangs up; hypercorn tells a reader of the body."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    disconnected.set()


async def _refuse_route(request: Request, error: Exception) -> Response:
    """Refuse a path or a method that the protocol does not have."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    detail = f"{request.method} {quoted(request.url.path)}: {error.detail.lower()}"
    return _response(ErrorReply(err=detail), error.status_code)


def _response(reply: Reply, status: int = 200) -> Response:
    return StreamedReply([*reply.pieces()], status)

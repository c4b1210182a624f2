"""HTTP on the plugin's Unix socket, and the one place where an error becomes a reply.

A refusal (`PluginError`) is answered with its own status and sentence. Anything else that is raised
is a bug: it is answered with 500 and logged with its traceback, and the plugin goes on.
"""

import logging
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import cast

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
from starlette.types import Receive, Scope, Send

from plugin import log as logs, threads
from plugin.admin import host
from plugin.admin.host import Machine
from plugin.admin.settings import Settings
from plugin.admin.source import Host
from plugin.api.engine_restart import Greetings
from plugin.api.listening import listening
from plugin.api.verbs import VERBS, Perform, Verb
from plugin.errors import CannotStart, PluginError, RequestTimeout, RequestTooLarge, quoted
from plugin.mounting.fd_store import NOTHING, Inherited, inherited
from plugin.mounting.keeper import keeping
from plugin.mounting.spawner import COMMAND, PROC
from plugin.protocol import CONTENT_TYPE, ErrorReply, Reply, Request as Call
from plugin.volumes.driver import Driver
from plugin.volumes.inventory import Inventory
from plugin.volumes.registry import Registry
from plugin.volumes.storage import Storage

log = logging.getLogger(__name__)

# Hundreds of options would not come near it; what is longer is no request of dockerd.
BODY_LIMIT_BYTES = 1 << 20
# dockerd sends a request in one piece; this is for a client that stops in the middle.
BODY_DEADLINE_S = 30.0
# dockerd keeps idle connections for 30 s and takes it badly when we close one under a request.
KEEP_ALIVE_S = 75.0
# For a look at the host's directories, at the start: microseconds, unless a server is dead.
LOOK_S = 1.0
# At shutdown, for requests under way. The engine kills a plugin after 10 s; mounts need the rest.
DRAIN_S = 1.5
# Pieces of a body that wait to be read. hypercorn itself waits when it is full, and would for ever
# if we have refused the body meanwhile and read no more; a refused one never comes near this.
BODY_QUEUE = 4096


def run(settings: Settings) -> None:
    """Be the plugin until SIGTERM or SIGINT.

    No mount, worker or socket is left at the end, but what a service manager keeps for the next
    plugin; what that has handed over it tells in the process's environment.

    Raises:
        CannotStart: says what is in the way.
    """
    logs.configure(settings.log_level)
    _raise_descriptor_limit()
    try:
        trio.run(_run, settings, inherited(os.environ))
    except OSError as error:
        raise CannotStart(f"cannot start: {error}") from error


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as there may be: each mounted volume takes half a dozen.

    The lower limit that most processes begin with is for those who use select(2).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(settings: Settings, given: Inherited = NOTHING) -> None:
    async def signalled() -> None:
        number = await anext(signals)
        log.info("ending on %s", signal.Signals(number).name)
        given.store.say("STOPPING=1")

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with prepared(settings, given=given) as (driver, listener):
            given.store.say("READY=1")
            greetings = Greetings(settings.mount_dir, driver.is_idle)
            await serve(driver, listener, signalled, greetings.hear)
    log.info("ended")


@asynccontextmanager
async def prepared(
    settings: Settings, worker: Sequence[str] = COMMAND, given: Inherited = NOTHING
) -> AsyncIterator[tuple[Driver, socket.socket]]:
    """The driver and its listening socket, with all that they stand on; taken down at the end.

    *given* is what the service manager has handed over.

    Raises:
        CannotStart: says what is in the way.
        OSError: a directory cannot be made or read.
    """
    storage = Storage(settings.data_dir, settings.owner)
    storage.prepare()
    with (
        # First: what follows clears away what a plugin that is still alive would miss.
        Registry.open(settings.data_dir) as registry,
        listening(settings.socket, given.listener) as listener,
    ):
        inventory = Inventory(registry, storage)
        inventory.settle()
        known = await _machine(settings)
        storage.known_as(known.data_dir)
        left = registry.served, inventory.used()
        room, proc = registry.reserve, known.proc or PROC
        async with (
            keeping(settings.mount_dir, worker, given, *left, proc=proc, reserve=room) as keeper,
            trio.open_nursery() as background,
        ):
            driver = Driver(
                registry,
                storage,
                keeper,
                _host(settings),
                machine=known,
                policy=settings.policy,
                nursery=background,
            )
            log.info("serving %d volumes on %s", len(registry.records), listener.getsockname())
            yield driver, listener
            background.cancel_scope.cancel()


def _host(settings: Settings) -> Host:
    return Host(
        root=settings.host_root,
        directory=settings.host_dir,
        mount_dir=settings.mount_dir,
        data_dir=settings.data_dir,
        allowed=settings.allowed_sources,
    )


async def _machine(settings: Settings) -> Machine:
    """Return what the plugin knows of its host, and nothing if a file system does not answer."""
    look = partial(host.look, settings.data_dir, settings.host_root, settings.host_dir)
    with trio.move_on_after(LOOK_S):
        return await threads.call(look, trio.CapacityLimiter(1), lambda _: None)
    return Machine()


async def serve(
    driver: Driver,
    listener: socket.socket,
    stopped: Callable[[], Awaitable[None]],
    wordless: Callable[[float], None] = lambda _: None,
) -> None:
    """Answer requests on *listener*, which is closed in the end, until *stopped* returns.

    *wordless* is told of each client that has gone without a word, and after how many seconds.

    This is what hypercorn does itself to serve an application, but for `Connection`.
    """
    config = HypercornConfig()
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.max_app_queue_size = BODY_QUEUE
    config.errorlog = logging.getLogger("hypercorn")
    # Starlette types its scopes more loosely than hypercorn does.
    app = ASGIWrapper(cast("ASGIFramework", application(driver)))
    context = WorkerContext(max_requests=None)

    async def handle(stream: trio.SocketStream) -> None:
        state = ConnectionState({})
        opened = trio.current_time()
        # Annotated for TLS alone.
        connection = Connection(app, config, context, state, stream)  # type: ignore[arg-type]
        await connection.run()
        if connection.wordless:
            wordless(trio.current_time() - opened)

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
    """hypercorn's side of one connection, which ends with its client and ends nobody else.

    hypercorn keeps a connection whose client has hung up until its keep-alive time is over. And
    what is raised in one, such as by a client that hangs up at a bad moment, ends all of them.
    """

    wordless = False
    """Whether the client has gone and has never said anything."""

    async def run(self) -> None:
        """Serve the connection to its end."""
        try:
            await super().run()
        except* Exception as errors:
            log.exception("a connection has failed", exc_info=errors)

    async def _read_data(self) -> None:
        with suppress(trio.ClosedResourceError, OSError):  # for those who read to find the same
            self.wordless = not await self.stream.socket.recv(1, socket.MSG_PEEK)
        await super()._read_data()
        await self.idle_task.stop()


class NoReply(Response):
    """What is answered when the client has gone: hypercorn must not be asked to write to it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send nothing."""


class InPieces(Response):
    """A reply that is sent in pieces, between which other requests are answered."""

    def __init__(self, pieces: Sequence[bytes], status: int) -> None:
        length = {"content-length": str(sum(map(len, pieces)))}
        super().__init__(None, status, length, CONTENT_TYPE)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all; a client that has gone is no error."""
        del scope, receive
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def application(driver: Driver) -> Starlette:
    """The verbs of *driver* at their paths; whatever else is asked for is refused in JSON."""
    routes = [
        Route(path, _endpoint(driver, path, verb), methods=["POST"]) for path, verb in VERBS.items()
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refuse_route})
    app.router.redirect_slashes = False
    return app


def _endpoint(driver: Driver, path: str, verb: Verb) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        started = trio.current_time()
        subject = "-"
        try:
            call = verb.request.parse(await _body(request))
            subject = call.subject
            response = _response(await _perform(driver, verb, call, request))
        except ClientDisconnect:
            response = NoReply()
        except PluginError as error:
            response = _response(ErrorReply(err=str(error)), error.status)
        except Exception:  # the boundary: whatever is left is a bug, and only of this request
            log.exception("bug in %s %s", path, subject)
            response = _response(ErrorReply(err="internal error; the plugin's log says more"), 500)
        duration_ms = 1000 * (trio.current_time() - started)
        log.debug("%s %s: %d in %.1f ms", path, subject, response.status_code, duration_ms)
        return response

    return answer


async def _body(request: Request) -> bytes:
    """The body, within bounds of length and time."""
    body = b""
    try:
        with trio.fail_after(BODY_DEADLINE_S):
            async with aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > BODY_LIMIT_BYTES:
                        raise RequestTooLarge(f"the body is longer than {BODY_LIMIT_BYTES} bytes")
    except trio.TooSlowError as error:
        raise RequestTimeout(
            f"the body has not come to an end within {BODY_DEADLINE_S:g} s"
        ) from error
    return body


async def _perform(driver: Driver, verb: Verb, call: Call, request: Request) -> Reply:
    """Have *verb* performed; where it can be undone, undo it if the client has gone meanwhile.

    A verb is never cancelled because its client has gone: it is whole, and then whole once more.
    """
    if verb.undo is None:
        return await verb.perform(driver, call)
    gone = trio.Event()
    refusal: PluginError | None = None
    reply = Reply()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, request, gone)
        try:
            reply = await verb.perform(driver, call)
        except PluginError as error:
            refusal = error  # raised below, where no nursery wraps it into a group
        nursery.cancel_scope.cancel()
    if gone.is_set():
        log.info("the client of %s %s has gone", request.url.path, call.subject)
        if refusal is None:
            await _undo(driver, verb.undo, call)
        raise ClientDisconnect
    if refusal is not None:
        raise refusal
    return reply


async def _undo(driver: Driver, undo: Perform, call: Call) -> None:
    """Take back what nobody was told of; a refusal can only be logged, for want of a client."""
    try:
        await undo(driver, call)
    except PluginError as error:
        log.warning("%s: cannot be undone: %s", call.subject, error)


async def _watch(request: Request, gone: trio.Event) -> None:
    """Set *gone* when the client hangs up; hypercorn tells it to who asks for more of the body."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()


async def _refuse_route(request: Request, error: Exception) -> Response:
    """The answer to a path or a method that the protocol does not have."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    detail = f"{request.method} {quoted(request.url.path)}: {error.detail.lower()}"
    return _response(ErrorReply(err=detail), error.status_code)


def _response(reply: Reply, status: int = 200) -> Response:
    return InPieces([*reply.pieces()], status)

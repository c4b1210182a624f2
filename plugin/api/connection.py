"""HTTP/1.1 on one connection: h11 knows the protocol, this module sends and receives the bytes."""

import socket
from collections.abc import Sequence
from contextlib import suppress

import h11
import trio

from plugin.errors import BadRequest, HeadTooLarge, RequestTimeout, RequestTooLarge
from plugin.protocol import CONTENT_TYPE

# A request with hundreds of options stays far below this limit.
BODY_LIMIT_BYTES = 1 << 20
# dockerd sends a request in one piece; the deadline is for a client that stops in the middle.
BODY_DEADLINE_S = 30.0
# The request line with all headers. h11 checks the length of an unfinished head alone.
HEAD_LIMIT_BYTES = 1 << 14
# dockerd reads a reply at once; the deadline is for a client that does not read.
REPLY_DEADLINE_S = 30.0
# The rest of a refused request is read and dropped, up to these limits. A client that sends its
# whole body before it reads would otherwise get EPIPE in place of the refusal.
DROP_LIMIT_BYTES = 1 << 24
DROP_DEADLINE_S = 5.0


class HungUp(Exception):  # noqa: N818 - no error: each client does so
    """The client has closed the connection, and waits for no reply."""


class Connection:
    """The connection of one client: requests one after the other, each with its reply."""

    def __init__(self, stream: trio.SocketStream, *, is_single: bool = False) -> None:
        """*stream* is borrowed; if *is_single*, its first request is the last one."""
        self._stream = stream
        self._is_single = is_single
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT_BYTES)
        self._length = 0
        self.is_silent = True
        """Whether the client has not sent a byte."""
        self.method = ""
        """The method of the present request."""
        self.path = ""
        """The path of the present request without a query, URL-quoted."""
        self.accept = ""
        """The media types that the present request accepts, as in its header; empty for any."""

    async def head(self) -> None:
        """Wait for the head of the next request.

        Raises:
            BadRequest: it is malformed.
            HeadTooLarge: it is longer than HEAD_LIMIT_BYTES.
            HungUp: the client has closed the connection.
        """
        self.method = self.path = self.accept = ""
        request = await self._next_event(is_head=True)
        assert isinstance(request, h11.Request)  # noqa: S101 - the first event of a cycle
        self.method = request.method.decode()
        self.path = request.target.partition(b"?")[0].decode()
        lengths = [int(value) for name, value in request.headers if name == b"content-length"]
        self._length = max(lengths, default=0)
        types = [value for name, value in request.headers if name == b"accept"]
        self.accept = b",".join(types).decode("latin-1")

    async def body(self) -> bytes:
        """Return the body of the present request.

        Raises:
            BadRequest: it is malformed.
            RequestTooLarge: it is longer than BODY_LIMIT_BYTES.
            RequestTimeout: it has not ended after BODY_DEADLINE_S.
            HungUp: the client has closed the connection.
        """
        body = bytearray()
        try:
            with trio.fail_after(BODY_DEADLINE_S):
                _check_length(self._length)
                while isinstance(event := await self._next_event(), h11.Data):
                    body += event.data
                    _check_length(len(body))
        except trio.TooSlowError as error:
            raise RequestTimeout(f"the body has not ended within {BODY_DEADLINE_S:g} s") from error
        return bytes(body)

    async def reply(
        self, status: int, pieces: Sequence[bytes], content_type: str = CONTENT_TYPE
    ) -> None:
        """Send a reply; between two *pieces* of its body the server answers other requests.

        Raises:
            HungUp: the client has closed the connection, or does not read.
        """
        headers = [("Content-Type", content_type), ("Content-Length", str(sum(map(len, pieces))))]
        # An unread rest of the request follows if its body is not done.
        if self._is_single or self._http.their_state is not h11.DONE:
            headers.append(("Connection", "close"))
        with trio.move_on_after(REPLY_DEADLINE_S) as limit:
            await self._send(h11.Response(status_code=status, headers=headers))
            for piece in pieces if self.method != "HEAD" else []:
                await self._send(h11.Data(data=piece))
            await self._send(h11.EndOfMessage())
        if limit.cancelled_caught:
            raise HungUp
        if self._http.their_state is not h11.DONE:
            await self._drop_rest()

    async def _drop_rest(self) -> None:
        """Read the rest of a refused request, which is lost, until the client has the reply."""
        with trio.move_on_after(DROP_DEADLINE_S), suppress(trio.BrokenResourceError):
            await self._stream.send_eof()
            dropped = 0
            while dropped < DROP_LIMIT_BYTES and (
                received := await self._stream.receive_some(HEAD_LIMIT_BYTES)
            ):
                dropped += len(received)

    def can_go_on(self) -> bool:
        """Return whether another request may follow, and prepare for it."""
        if (self._http.our_state, self._http.their_state) != (h11.DONE, h11.DONE):
            return False
        self._http.start_next_cycle()
        return True

    async def wait_for_hangup(self) -> None:
        """Wait until the client closes the connection; without end if it sends another request."""
        try:
            sent = await self._stream.socket.recv(1, socket.MSG_PEEK)
        except OSError:  # it has closed the connection with unread data
            return
        if sent:
            await trio.sleep_forever()

    async def _next_event(
        self, *, is_head: bool = False
    ) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                present = len(self._http.trailing_data[0]) if is_head else 0
                if present >= HEAD_LIMIT_BYTES:
                    raise HeadTooLarge(f"the head is longer than {HEAD_LIMIT_BYTES} bytes")
                self._http.receive_data(await self._receive(HEAD_LIMIT_BYTES - present))
        except h11.RemoteProtocolError as error:
            raise BadRequest(f"the request is not accepted: {error}") from error
        return event

    async def _receive(self, most_bytes: int) -> bytes:
        try:
            received = await self._stream.receive_some(most_bytes)
        except trio.BrokenResourceError as error:
            raise HungUp from error
        if not received:
            raise HungUp
        self.is_silent = False
        return bytes(received)

    async def _send(self, event: h11.Event) -> None:
        try:
            await self._stream.send_all(self._http.send(event) or b"")
        except trio.BrokenResourceError as error:
            raise HungUp from error


def _check_length(length: int) -> None:
    if length > BODY_LIMIT_BYTES:
        raise RequestTooLarge(f"the body is longer than {BODY_LIMIT_BYTES} bytes")

import errno
from collections.abc import Sequence
from typing import cast

import pytest

from passthrough.session import abi, wire
from passthrough.session.abi import Notification, Opcode
from passthrough.session.channel import MAX_WRITE
from passthrough.session.request import MalformedError
from passthrough.session.rings import RingChannel
from passthrough.session.uring import Ring
from tests.support.fakes.channel import FakeChannel
from tests.support.fakes.kernel import message
from tests.support.fakes.ring import FakeRing, apart

FUSE_FD, QUEUE = 7, 3
REGISTER, COMMIT_AND_FETCH = 1, 2


@pytest.fixture
def ring() -> FakeRing:
    return FakeRing()


def channel_on(ring: FakeRing, device: FakeChannel | None = None) -> RingChannel:
    return RingChannel(cast("Ring", ring), FUSE_FD, QUEUE, device or FakeChannel())


def test_an_entry_is_registered_then_answers_are_committed(ring: FakeRing) -> None:
    channel_on(ring)

    assert ring.commands == [
        (FUSE_FD, REGISTER, (0, 0, QUEUE)),
        (FUSE_FD, COMMIT_AND_FETCH, (0, 0, QUEUE)),
    ]


def test_an_entry_that_the_kernel_does_not_take_is_an_error(ring: FakeRing) -> None:
    ring.results = [-errno.EOPNOTSUPP]

    with pytest.raises(OSError, match="queue 3") as caught:
        channel_on(ring)

    assert caught.value.errno == errno.EOPNOTSUPP


def test_the_parts_of_a_request_are_found_where_they_lie(ring: FakeRing) -> None:
    data = bytes(range(256)) * 4096
    assert len(data) == MAX_WRITE
    body = wire.WRITE_IN.pack(5, 4096, len(data), 0, 0, 0)
    ring.requests = [
        apart(message(Opcode.WRITE, body + data, nodeid=9, unique=4), wire.WRITE_IN.size),
        apart(message(Opcode.LOOKUP, b"name\0", unique=6), 0),
        apart(message(Opcode.GETATTR, wire.GETATTR_IN.pack(0, 0), unique=8), 16),
    ]
    channel = channel_on(ring)
    request = channel.open_request()

    assert channel.receive(request)
    request.decode()
    assert (request.opcode, request.unique, request.nodeid) == (Opcode.WRITE, 4, 9)
    assert request.fields(wire.WRITE_IN) == (5, 4096, len(data), 0, 0, 0)
    assert request.data(len(data)) == data
    assert channel.receive(request)
    request.decode()
    assert (request.opcode, request.name()) == (Opcode.LOOKUP, b"name")
    assert channel.receive(request)
    request.decode()
    assert request.fields(wire.GETATTR_IN) == (0, 0)


def test_an_answer_leaves_with_the_next_wait(ring: FakeRing) -> None:
    ask = apart(message(Opcode.LOOKUP, b"name\0", unique=6), 0)
    ring.requests = [ask, ask, ask]
    channel = channel_on(ring)
    request = channel.open_request()
    assert channel.receive(request)
    request.decode()

    channel.reply(6, b"body")
    assert ring.answers == []
    assert channel.receive(request)
    channel.fail(6, errno.ENOENT)
    assert channel.receive(request)
    channel.fail(6, 5000)
    ring.results = [-errno.ENOTCONN]

    assert not channel.receive(request)
    assert ring.answers == [
        (6, wire.OUT_HEADER.pack(wire.OUT_HEADER.size + 4, 0, 6), 4, b"body"),
        (6, wire.OUT_HEADER.pack(wire.OUT_HEADER.size, -errno.ENOENT, 6), 0, b""),
        (6, wire.OUT_HEADER.pack(wire.OUT_HEADER.size, -errno.EIO, 6), 0, b""),
    ]


@pytest.mark.parametrize("more", [-1, 1])
def test_a_request_that_is_not_as_long_as_it_says_is_malformed(ring: FakeRing, more: int) -> None:
    head, fixed, rest = apart(message(Opcode.LOOKUP, b"name\0", unique=6), 0)
    ring.requests = [(head, fixed, b"names\0"[: len(rest) + more])]
    channel = channel_on(ring)
    request = channel.open_request()
    assert channel.receive(request)

    with pytest.raises(MalformedError):
        request.decode()

    assert request.unique == 6  # it can be answered


def test_extensions_are_not_part_of_the_last_name(ring: FakeRing) -> None:
    ask = message(Opcode.LOOKUP, b"name\0" + bytes(8), unique=6, extensions=1)
    ring.requests = [apart(ask, 0)]
    channel = channel_on(ring)
    request = channel.open_request()
    assert channel.receive(request)
    request.decode()

    assert request.name() == b"name"


def test_a_connection_that_breaks_is_no_end(ring: FakeRing) -> None:
    ring.results = []
    channel = channel_on(ring)
    ring.results = [-errno.EINVAL]

    with pytest.raises(OSError, match="does not take an answer"):
        channel.receive(channel.open_request())


class _Knows(FakeChannel):
    """A kernel that knows one regular file."""

    def __init__(self, inode: int) -> None:
        super().__init__()
        self.inode = inode

    def notify(self, code: int, parts: Sequence[bytes]) -> None:
        _, inode, _, _ = wire.NOTIFY_RETRIEVE_OUT.unpack(b"".join(parts))
        if inode != self.inode:
            raise OSError(errno.EINVAL if inode == abi.ROOT_ID else errno.ENOENT, "no such file")
        super().notify(code, parts)


def test_the_kernel_is_asked_for_pages_of_a_file_that_it_knows(ring: FakeRing) -> None:
    device = _Knows(12)
    channel = channel_on(ring, device)

    channel.hurry(1, iter([abi.ROOT_ID, 11, 12, 13]))
    channel.hurry(2, iter([abi.ROOT_ID]))

    ((code, body),) = device.notifications
    assert code == Notification.RETRIEVE
    assert wire.NOTIFY_RETRIEVE_OUT.unpack(body)[1:] == (12, 0, 0)


def test_what_the_kernel_sends_then_is_whole(ring: FakeRing) -> None:
    body = wire.NOTIFY_RETRIEVE_IN.pack(0, 0)
    ring.requests = [apart(message(Opcode.NOTIFY_REPLY, body, unique=1 << 62), 0)]
    channel = channel_on(ring)
    request = channel.open_request()
    assert channel.receive(request)

    request.decode()

    assert request.opcode == Opcode.NOTIFY_REPLY

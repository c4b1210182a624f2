"""The descriptor of /dev/fuse, with a socket in its place."""

import errno
import os
import socket

import pytest

from passthrough.session.channel import DeviceChannel
from passthrough.session.wire import OUT_HEADER

Pair = tuple[socket.socket, socket.socket]


def test_a_descriptor_that_did_not_wait_waits(pair: Pair) -> None:
    ours, theirs = pair
    ours.setblocking(False)  # as whoever had it before may have left it
    channel = DeviceChannel(ours.fileno())
    request = channel.open_request()
    theirs.send(b"a request")

    assert os.get_blocking(ours.fileno())
    assert channel.receive(request)
    assert request.length == 9


def test_an_answer_has_its_length_and_number(pair: Pair) -> None:
    ours, theirs = pair
    channel = DeviceChannel(ours.fileno())

    channel.reply(7, b"body")
    channel.fail(8, 2)
    channel.fail(9, 512)

    assert theirs.recv(100) == OUT_HEADER.pack(20, 0, 7) + b"body"
    assert theirs.recv(100) == OUT_HEADER.pack(16, -2, 8)
    assert theirs.recv(100) == OUT_HEADER.pack(16, -5, 9)

    long = bytes(range(256)) * 17
    channel.reply(10, long)
    assert theirs.recv(5000) == OUT_HEADER.pack(16 + len(long), 0, 10) + long


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ECONNABORTED])
def test_an_unmount_and_an_abort_end_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The second where it comes while a request is being read."""

    def readv(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    channel = DeviceChannel(pair[0].fileno())
    monkeypatch.setattr(os, "readv", readv)

    assert not channel.receive(channel.open_request())


def test_who_comes_too_late_reads_nothing_and_writes_to_nobody(pair: Pair) -> None:
    """The number of the descriptor may be another file's by then; and nothing is logged."""
    ours, theirs = pair
    channel = DeviceChannel(ours.fileno())

    channel.leave()
    assert not channel.receive(channel.open_request())
    channel.reply(7, b"body")
    channel.fail(8, 2)

    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(100)

"""Fixtures of the tests of both sessions."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.options.choices import SessionKind
from passthrough.options.effective import Effective
from passthrough.session.abi import Init
from tests.support.fakes.kernel import EVERYTHING, Connect, Kernel
from tests.support.tools.implementations import IMPLEMENTATIONS, ByteSession
from tests.support.tools.options import effective

KERNEL = effective(session=SessionKind.KERNEL, posix_acl=False)
# A socket in place of /dev/fuse takes no ioctl(2), which passthrough needs.
OFFERED = EVERYTHING & ~Init.PASSTHROUGH


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket in place of /dev/fuse, and the kernel's end of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture(params=IMPLEMENTATIONS)
def connect(request: pytest.FixtureRequest, source: Path) -> Iterator[Connect]:
    """Connect a kernel to a session over *source*: connect(options, offered, minor).

    A session ends before the next one begins, or at the end of the test.
    """
    start = IMPLEMENTATIONS[request.param]
    sessions: list[ByteSession] = []

    def connect_(options: Effective = KERNEL, offered: int = OFFERED, **more: int) -> Kernel:
        while sessions:
            sessions.pop().close()
        sessions.append(start(source, options))
        return Kernel(sessions[-1], offered, **more)

    yield connect_
    for session in sessions:
        session.close()


@pytest.fixture
def kernel(connect: Connect) -> Iterator[Kernel]:
    """A kernel connected to a session, which at the end must hold no more than after INIT.

    The test closes its files and directories, and the fixture forgets all lookups. Then the
    session must know none of the nodeids that it granted, and the process must have no more
    descriptors open than after INIT.
    """
    kernel = connect()
    before = len(os.listdir("/proc/self/fd"))
    yield kernel
    kernel.forget_all()
    assert len(os.listdir("/proc/self/fd")) <= before

import errno
import os
from collections.abc import Iterator

import pytest

from passthrough.session.uring import Ring, _next


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring()
    yield made
    made.close()


def test_a_command_brings_its_result(ring: Ring) -> None:
    fd = os.open("/dev/zero", os.O_RDONLY)
    try:
        ring.prepare(fd, 1)
        for _ in range(5):
            assert ring.submit_and_wait() == -errno.EOPNOTSUPP  # it knows no commands
        ring.submit()
        assert ring.wait() == -errno.EOPNOTSUPP
        assert not ring.has_result()
    finally:
        os.close(fd)


def test_every_other_command_is_refused(ring: Ring) -> None:
    for opcode in range(46):
        ring._sqe[:] = bytes([opcode]) + bytes(len(ring._sqe) - 1)
        assert ring.submit_and_wait() in {-errno.EACCES, -errno.EINVAL}, opcode
    ring._sqe[:] = bytes(len(ring._sqe))
    assert ring.submit_and_wait() == -errno.EACCES  # NOP, which always succeeds elsewhere


def test_counters_go_on_beyond_their_signed_half() -> None:
    assert _next(0x7FFF_FFFF) == -0x8000_0000
    assert _next(-1) == 0

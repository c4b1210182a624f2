"""Calls of io_uring_enter(2) that the kernel refuses for the moment."""

import ctypes
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.passthrough.core.probe_uring import run
from tests.support.fakes.bpf import IF_EQUAL, LOAD, RETURN
from tests.support.tools.callers import ROOT

IO_URING_ENTER = 426
PR_SET_NO_NEW_PRIVS = 38
SECCOMP, SET_MODE_FILTER, NEW_LISTENER = {"x86_64": 317, "aarch64": 277}, 1, 1 << 3
USER_NOTIF, ALLOW = 0x7FC0_0000, 0x7FFF_0000
RECV, SEND = 0xC050_2100, 0xC018_2101  # SECCOMP_IOCTL_NOTIF_*
NOTIFICATION, ANSWER = struct.Struct("=QII64x"), struct.Struct("=QqiI")
CONTINUE = 1
TIMES = 3

_libc = ctypes.CDLL(None, use_errno=True)


def watched() -> int:
    """Have another thread decide on this thread's io_uring_enter(2), seccomp_unotify(2).

    Return the descriptor by which it does.
    """
    lines = [(LOAD, 0, 0, 0), (IF_EQUAL, 0, 1, IO_URING_ENTER), (RETURN, 0, 0, USER_NOTIF)]
    code = b"".join(struct.pack("=HBBI", *line) for line in (*lines, (RETURN, 0, 0, ALLOW)))
    program = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("@HP", 4, ctypes.addressof(program))
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    number = SECCOMP[os.uname().machine]
    fd = int(_libc.syscall(number, SET_MODE_FILTER, NEW_LISTENER, filter_))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


def decide(fd: int, errors: Sequence[int]) -> None:
    """Fail the first calls with *errors*, and have the kernel do all others."""
    left = list(errors)
    while True:
        notification = bytearray(NOTIFICATION.size)
        try:
            fcntl.ioctl(fd, RECV, notification)
        except OSError:
            return
        number = NOTIFICATION.unpack(notification)[0]
        error = left.pop(0) if left else 0
        fcntl.ioctl(fd, SEND, ANSWER.pack(number, 0, -error, 0 if error else CONTINUE))


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EBUSY, errno.EINTR])
def test_a_ring_survives_what_passes(error: int) -> None:
    """The kernel lacks memory, or room for results, or a signal has come: each for a moment."""

    def both() -> int:
        with open("/dev/null", "rb") as null, ThreadPoolExecutor(1) as executor:  # answers all
            listener: list[int] = []
            ready = threading.Event()

            def ring() -> int:
                listener.append(watched())
                ready.set()
                return run(null.fileno(), TIMES)

            running = executor.submit(ring)
            ready.wait()
            threading.Thread(target=decide, args=(listener[0], [error] * 4), daemon=True).start()
            return running.result()

    assert ROOT.run(both) == 0

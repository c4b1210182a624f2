"""A function that runs one instruction at a time, in a child."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator, Sequence

# ptrace(2)
_TRACE_ME, _SINGLE_STEP = 0, 9
_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def step_through(fds: Sequence[int], work: Callable[[], object]) -> Iterator[list[bytes]]:
    """Run *work* in a child, and give each state of the memory files *fds*."""
    pid = os.fork()
    if pid == 0:
        _ptrace(_TRACE_ME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        os.kill(os.getpid(), signal.SIGKILL)
    memory: list[bytes] = []
    sizes = [os.fstat(fd).st_size for fd in fds]
    try:
        while os.WIFSTOPPED(os.waitpid(pid, 0)[1]):
            now = [os.pread(fd, size, 0) for fd, size in zip(fds, sizes, strict=True)]
            if now != memory:
                memory = now
                yield memory
            _ptrace(_SINGLE_STEP, pid, None, None)
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

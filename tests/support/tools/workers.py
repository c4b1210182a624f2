"""Workers of one volume, as a guard clones them: they share memory and descriptors."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# clone(2), x86_64 and aarch64
_CLONE = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
_CLONE_FILES = 0x400
# ptrace(2)
_TRACE_ME = 0
# With the interpreter's lock held, so that the child has the lock, too.
_clone = ctypes.PyDLL(None, use_errno=True).syscall
_clone.argtypes = [ctypes.c_long] * 6
_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def begin(work: Callable[[], object]) -> int:
    """Call *work* in a process that shares the descriptors of this one, and ends then."""
    pid: int = _clone(_CLONE, _CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0)
    if pid:
        return pid
    try:
        work()
    finally:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


def run(work: Callable[[], object]) -> None:
    """Call *work* in a worker of its own, and wait until that is dead."""
    os.waitpid(begin(work), 0)


@contextmanager
def traced(work: Callable[[], object]) -> Iterator[int]:
    """Call *work* in a worker that this process traces, ptrace(2), until the block ends.

    The worker runs until it stops itself.
    """

    def begun() -> None:
        _ptrace(_TRACE_ME, 0, None, None)
        work()

    pid = begin(begun)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError, ChildProcessError):  # it has ended, and was waited for
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def descriptors() -> set[int]:
    """Return the descriptors that are open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            continue  # that of the listing
        found.add(int(name))
    return found

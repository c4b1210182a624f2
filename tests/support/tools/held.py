"""A thread of another process, held before or after a system call, ptrace(2)."""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.tools import processes

# ptrace(2) and waitpid(2)
_DETACH, _SYSCALL, _SEIZE, _INTERRUPT = 17, 24, 0x4206, 0x4207
_WAIT_ALL = 0x4000_0000
_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def threads_in(pid: int, kernel_function: str) -> list[int]:
    """Return the threads of process *pid* that sleep in such a function of the kernel."""
    places = processes.threads(pid, "wchan").items()
    return [thread for thread, place in places if place.startswith(kernel_function)]


@contextmanager
def one_held(threads: Sequence[int], cause: Callable[[], object]) -> Iterator[None]:
    """Stop *threads*, call *cause*, and let the first one make its system call; the others go on.

    The first thread stays in hand until the block ends. Its process must have been killed by then.
    """
    first, *others = _stopped(threads, cause)
    for _ in ("begin", "end"):
        _step(first)
    _release(others)
    try:
        yield
    finally:
        os.waitpid(first, _WAIT_ALL)


@contextmanager
def one_held_before(
    call: int, threads: Sequence[int], cause: Callable[[], object]
) -> Iterator[None]:
    """Stop *threads*, call *cause*, and hold the first one before it makes system call *call*.

    The others go on, and the first one at the end of the block.
    """
    first, *others = _stopped(threads, cause)
    while int(Path(f"/proc/{first}/syscall").read_text().split()[0]) != call:
        _step(first)
    _release(others)
    try:
        yield
    finally:
        _release([first])


def _stopped(threads: Sequence[int], cause: Callable[[], object]) -> list[int]:
    """Stop *threads*, call *cause*, and return those that have not ended before."""
    found = [thread for thread in threads if _stops(thread)]
    assert found[:1] == [*threads[:1]]
    cause()
    return found


def _stops(thread: int) -> bool:
    """Stop a thread; return false if it has ended, or ends instead."""
    try:
        _call(_SEIZE, thread)
    except (ProcessLookupError, PermissionError):
        return False
    with suppress(ProcessLookupError):
        _call(_INTERRUPT, thread)
    _, status = os.waitpid(thread, _WAIT_ALL)
    return os.WIFSTOPPED(status)


def _step(thread: int) -> None:
    """Let a thread go to the beginning or the end of its next system call."""
    _call(_SYSCALL, thread)
    os.waitpid(thread, _WAIT_ALL)


def _release(threads: Sequence[int]) -> None:
    for thread in threads:
        _call(_DETACH, thread)


def _call(request: int, thread: int) -> None:
    if _ptrace(request, thread, None, None) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

"""Counts the system calls of a process by name, without slowing the process down as strace(1) does.

The kernel's tracepoint raw_syscalls:sys_enter fires at each call. perf_event_open(2) counts it for
each thread that the process has, but for the main one, and for each that these threads start.
"""

import contextlib
import ctypes
import os
import platform
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from passthrough.worker.calls import ALLOWED
from passthrough.worker.seccomp import CHECKED, MACHINES

_TRACING = Path("/sys/kernel/tracing")
_EVENT = _TRACING / "events/raw_syscalls/sys_enter/id"
_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_TRACEPOINT, _INHERIT, _CLOSE_ON_EXEC = 2, 1 << 1, 1 << 3
_SET_FILTER = 0x4008_2406  # PERF_EVENT_IOC_SET_FILTER
# struct perf_event_attr, first version: type, size, config, three that stay 0, flags; the rest is 0
_ATTRIBUTES = struct.Struct("=IIQ24xQ16x")
_COUNT_BYTES = 8
# The C library makes fstat(2) of one or the other, by its version.
_ONE_NAME = {"newfstatat": "fstat"}

_libc = ctypes.CDLL(None, use_errno=True)

Calls = Callable[[], Counter[str]]
"""Returns the number of calls so far by name, without names that were not called."""


@contextlib.contextmanager
def counting(pid: int, names: set[str]) -> Iterator[Calls]:
    """Count the calls of *names* that process *pid* makes during the block.

    The main thread does not count: that of a worker serves no request.
    The test is skipped if this kernel, or a container's policy, does not count calls.
    """
    numbers = [(name, number) for name in names for number in _numbers(name)]
    with contextlib.ExitStack() as stack:
        try:
            config = _event()
            counts = [
                (name, _open(stack, config, int(task.name), number))
                for name, number in numbers
                for task in Path(f"/proc/{pid}/task").iterdir()
                if task.name != str(pid)
            ]
        except OSError as error:
            pytest.skip(f"system calls cannot be counted: {error}")

        def calls() -> Counter[str]:
            found: Counter[str] = Counter()
            for name, fd in counts:
                found[name] += int.from_bytes(os.read(fd, _COUNT_BYTES), "little")
            return +found

        yield calls


def _numbers(name: str) -> Iterator[int]:
    """Yield the numbers of a call on this machine."""
    column = MACHINES[platform.machine()].column
    for known in (name, *(other for other, one in _ONE_NAME.items() if one == name)):
        numbers = ALLOWED[known] if known in ALLOWED else CHECKED[known].numbers
        if (number := numbers[column]) is not None:
            yield number


def _event() -> int:
    """Return the number of the tracepoint, and mount tracefs meanwhile if nothing has."""
    if _EVENT.exists():
        return int(_EVENT.read_text())
    syscalls.mount(b"none", os.fsencode(_TRACING), b"tracefs", 0, b"")
    try:
        return int(_EVENT.read_text())
    finally:
        syscalls.umount2(os.fsencode(_TRACING), syscalls.MNT_DETACH)


def _open(stack: contextlib.ExitStack, config: int, thread: int, number: int) -> int:
    """Return the descriptor of the count of one call of one thread, which *stack* closes."""
    attributes = _ATTRIBUTES.pack(_TRACEPOINT, _ATTRIBUTES.size, config, _INHERIT)
    words = (attributes, thread, -1, -1, _CLOSE_ON_EXEC)
    fd = _libc.syscall(ctypes.c_long(_SYS_PERF_EVENT_OPEN[platform.machine()]), *words)
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    stack.callback(os.close, fd)
    if _libc.ioctl(fd, ctypes.c_ulong(_SET_FILTER), f"id == {number}".encode()) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(fd)

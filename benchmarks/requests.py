"""Counts the requests that the kernel sends to one FUSE file system, with any server.

The kernel's tracepoint fuse:fuse_request_send fires once for each request that wants an answer, on
/dev/fuse and over io_uring. It does not fire for FORGET. perf_event_open(2) counts it on every
processor, with a filter for the connection. The count costs the caller of the file system a
fraction of a microsecond, and its server nothing.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from passthrough.linux import mountinfo, syscalls

_TRACING: Final = "/sys/kernel/tracing"
_EVENT: Final = f"{_TRACING}/events/fuse/fuse_request_send/id"
_ONLINE: Final = "/sys/devices/system/cpu/online"

_SYS_PERF_EVENT_OPEN: Final = {"x86_64": 298, "aarch64": 241}
_PERF_TYPE_TRACEPOINT, _PERF_FLAG_FD_CLOEXEC = 2, 8
_PERF_EVENT_IOC_SET_FILTER: Final = 0x40082406
# struct perf_event_attr, first version: type, size, config; the rest is 0.
_ATTRIBUTES: Final = struct.Struct("IIQ48x")
_ALL_PROCESSES, _NO_GROUP = -1, -1
_COUNT_BYTES, _MINOR_BITS = 8, 20

_libc = ctypes.CDLL(None, use_errno=True)

Count = Callable[[], int | None]
"""Returns the number of requests so far; None if this kernel does not count them."""


def uncounted() -> None:
    """Return None: there is nothing to count."""


@contextmanager
def counted(mountpoint: str) -> Iterator[Count]:
    """Count the requests of the FUSE file system at *mountpoint* for the length of a block.

    Yields `uncounted` if this kernel, or a container's policy, does not allow a count.
    """
    with ExitStack() as opened:
        try:
            event, condition = _event(), f"connection == {_connection(mountpoint)}"
            events = [_opened(opened, event, condition, cpu) for cpu in _processors()]
        except OSError:
            yield uncounted
            return
        yield lambda: sum(map(_value, events))


def _event() -> int:
    """Return the number of the tracepoint, and mount tracefs meanwhile if nothing has."""
    if os.path.exists(_EVENT):
        return int(Path(_EVENT).read_text(encoding="ascii"))
    syscalls.mount(b"none", os.fsencode(_TRACING), b"tracefs", 0, b"")
    try:
        return int(Path(_EVENT).read_text(encoding="ascii"))
    finally:
        syscalls.umount2(os.fsencode(_TRACING), syscalls.MNT_DETACH)


def _connection(mountpoint: str) -> int:
    """Return the kernel's number of the connection, without a call to the file system."""
    entries = mountinfo.at(os.fsencode(mountpoint))
    if not entries:
        raise FileNotFoundError(mountpoint)
    device = entries[-1].device
    return os.major(device) << _MINOR_BITS | os.minor(device)


def _opened(opened: ExitStack, event: int, condition: str, processor: int) -> int:
    """Return the descriptor of a count on one processor, which *opened* closes."""
    attributes = _ATTRIBUTES.pack(_PERF_TYPE_TRACEPOINT, _ATTRIBUTES.size, event)
    number = _SYS_PERF_EVENT_OPEN.get(platform.machine(), -1)
    fd: int = _libc.syscall(
        ctypes.c_long(number),
        attributes,
        ctypes.c_int(_ALL_PROCESSES),
        ctypes.c_int(processor),
        ctypes.c_int(_NO_GROUP),
        ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC),
    )
    if fd < 0:
        raise OSError(ctypes.get_errno(), "perf_event_open")
    opened.callback(os.close, fd)
    if _libc.ioctl(fd, ctypes.c_ulong(_PERF_EVENT_IOC_SET_FILTER), condition.encode()) < 0:
        raise OSError(ctypes.get_errno(), "PERF_EVENT_IOC_SET_FILTER")
    return fd


def _value(fd: int) -> int:
    return int.from_bytes(os.read(fd, _COUNT_BYTES), "little")


def _processors() -> list[int]:
    """Return the numbers of the processors, from a list like `0-3,8`."""
    found: list[int] = []
    for part in Path(_ONLINE).read_text(encoding="ascii").strip().split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found

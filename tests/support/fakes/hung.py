"""A source that hangs, as one on a network file system with a dead server does."""

import os
from pathlib import Path
from typing import Self

from passthrough.linux import syscalls
from tests.support.tools.processes import threads

OPENAT2 = 437  # the same number on all architectures


class HungSource:
    """A mount that answers no request; a context manager.

    It is a FUSE mount, and its first request, FUSE_INIT, gets no answer. So a thread that looks up
    a name there waits in the kernel, where only SIGKILL ends it. `close` makes the calls fail.
    """

    def __init__(self, directory: Path) -> None:
        """Mount on *directory*, and so hide its entries.

        A path to one of these entries hangs.
        """
        self._directory = os.fsencode(directory)
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        data = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        syscalls.mount(b"hung", self._directory, b"fuse.hung", 0, data.encode())

    def close(self) -> None:
        """Unmount the file system, and make all calls that wait for it fail."""
        syscalls.umount2(self._directory, syscalls.MNT_DETACH)
        self.release()

    def release(self) -> None:
        """Make all calls that wait for the mount fail."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_opening(pid: int) -> bool:
    """Return whether a thread of process *pid* is in openat2(2), proc_pid_syscall(5)."""
    return any(call.startswith(f"{OPENAT2} ") for call in threads(pid, "syscall").values())

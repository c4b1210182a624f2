"""A source that hangs for real, as one on a network file system whose server has gone."""

import os
from pathlib import Path
from typing import Self

from passthrough.linux import syscalls

OPENAT2 = 437  # on every machine, openat2(2)


class HungSource:
    """A file system over a directory that answers nothing; a context manager.

    It is FUSE, and nobody has answered its first request, so that whoever looks up a name in it
    waits in the kernel and can be ended by SIGKILL alone. What waits fails in the end.
    """

    def __init__(self, directory: Path) -> None:
        """Hide *directory*, in which whatever exists by now can be named."""
        self._directory = os.fsencode(directory)
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        data = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        syscalls.mount(b"hung", self._directory, b"fuse.hung", 0, data.encode())

    def close(self) -> None:
        """Take the file system away, and fail whatever waits for it."""
        syscalls.umount2(self._directory, syscalls.MNT_DETACH)
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def waits(pid: int) -> bool:
    """Whether a thread of process *pid* is about to open something, proc_pid_syscall(5)."""
    calls = [(task / "syscall").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return any(call.startswith(f"{OPENAT2} ") for call in calls)

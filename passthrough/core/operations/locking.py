"""Locks on open files, taken on the host's, so that everybody sees them who uses those.

Who waits does so in the calling thread, until it is called back by the number that it gave. The
methods that lock tell whether what the caller's kernel keeps of the file's content may be older
than the lock, and has to be dropped before the caller hears of it.

Files that are opened to be read get FOPEN_NOFLUSH until the volume has its first lock of fcntl(2).
Without FLUSH the worker does not hear that an owner has closed a file, which is when its locks end.
A file that was opened to be read before gives its locks up when its last descriptor is closed.
"""

import errno
import fcntl
from typing import Final

from passthrough.core.locks import Target
from passthrough.core.operations.base import Operations
from passthrough.linux.errors import os_error
from passthrough.linux.filecalls import LAST_BYTE, Lock

_KINDS: Final = frozenset({fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK})


class LockingOperations(Operations):
    """What locks open files."""

    def getlk(self, handle: int, owner: int, lock: Lock) -> Lock | None:
        """What is in the way of *lock* for *owner*, F_GETLK of fcntl(2); None if nothing is.

        Its pid is nought or less if a user of another volume holds it.
        """
        found = self.locks.conflict(self._target(handle), owner, _checked(lock))
        return found._replace(pid=max(found.pid, 0)) if found else None

    def setlk(self, handle: int, owner: int, lock: Lock) -> bool:
        """Take or drop *lock* for *owner*, F_SETLK of fcntl(2).

        Raises:
            OSError: EAGAIN, another lock is in the way.
        """
        target = self._target(handle)
        if _checked(lock).kind == fcntl.F_UNLCK:
            self.locks.unlock(target.file, owner, lock)
            return False
        return self.locks.lock(target, owner, lock)

    def setlkw(self, handle: int, owner: int, lock: Lock, number: int) -> bool:
        """Take *lock* for *owner* as soon as nothing is in the way, F_SETLKW of fcntl(2).

        Raises:
            OSError: EINTR, `interrupt` was called with *number*; EDEADLK, it would wait for ever.
        """
        if _checked(lock).kind == fcntl.F_UNLCK:
            return self.setlk(handle, owner, lock)
        with self.waits.waiting(number) as wait:
            return self.locks.lock(self._target(handle), owner, lock, wait)

    def flock(self, handle: int, kind: int, number: int | None = None) -> bool:
        """Lock or unlock a whole file by F_RDLCK, F_WRLCK or F_UNLCK for its open file, flock(2).

        With *number* as soon as nothing is in the way.

        Raises:
            OSError: EAGAIN, another lock is in the way; EINTR, `interrupt` was called with
                *number*.
        """
        target = self._target(handle)
        if kind not in _KINDS:
            raise os_error(errno.EINVAL)
        if number is None:
            return self.locks.flock(target, kind)
        with self.waits.waiting(number) as wait:
            return self.locks.flock(target, kind, wait)

    def interrupt(self, number: int) -> None:
        """The caller of the request *number* is not to wait any longer; others do not wait."""
        self.waits.call_back(number)

    def _target(self, handle: int) -> Target:
        file = self.files[handle]
        return Target(file.inode_number, handle, file.fd)


def _checked(lock: Lock) -> Lock:
    if lock.kind not in _KINDS or not 0 <= lock.start <= lock.end <= LAST_BYTE:
        raise os_error(errno.EINVAL)
    return lock

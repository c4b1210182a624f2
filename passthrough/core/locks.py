"""Locks on the host's files, so that other volumes on one source, and the host, see them.

A POSIX lock belongs to an owner, fcntl_locking(2): all descriptors of a process that lead to one
file share its locks, and closing any of them drops them all. This process cannot hold locks in the
name of others but for one kind: those that belong to an open file description. So each
owner gets a description of its own of each file that it locks. Its locks are merged, split and
replaced by the host; of two owners the host knows that they are two.

The locks that the host has granted are noted here as well, for three purposes: to say who holds a
lock, since the host knows this process only; to find owners that wait for one another, which the
host does not look for among locks of this kind; and to take them over onto another description.

What is in the caller's kernel of the file's content may be older than the lock. The host's times
and size, as they were when this volume last had to do with a lock of the file, tell.

Threads: dictionary work happens under one lock, system calls outside of it.

A lock of flock(2) is taken on the open file's own descriptor. SQLite on two volumes depends on it
that the kernel's pages of a changed file are dropped before an owner gets the lock.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from passthrough.core.waiting import Wait
from passthrough.linux import fdpath, filecalls
from passthrough.linux.errors import os_error
from passthrough.linux.filecalls import NO_LOCK, Lock

_FLOCKS: Final = {
    fcntl.F_RDLCK: fcntl.LOCK_SH,
    fcntl.F_WRLCK: fcntl.LOCK_EX,
    fcntl.F_UNLCK: fcntl.LOCK_UN,
}
# Of how many files it is remembered what they were like; of any other it is not known.
_REMEMBERED: Final = 1024


class Target(NamedTuple):
    """An open file by which somebody locks."""

    file: int
    """The file's number, the same for all who have it open."""
    handle: int
    """The number of this open file."""
    fd: int


class _Owned:
    """What one owner has locked of one file, by a description for that alone.

    It is closed when nobody uses it any more: the table, and each thread that is about to lock.
    """

    __slots__ = ("fd", "held", "pid", "through", "users", "writable")

    def __init__(self, fd: int, *, writable: bool) -> None:
        self.fd = fd
        self.writable = writable
        self.held: list[Lock] = []
        self.pid = 0
        self.through: set[int] = set()
        self.users = 1

    def note(self, lock: Lock) -> None:
        """Note that *lock* has taken the place of what was held of its bytes."""
        held = []
        for old in self.held:
            if not _overlap(old, lock):
                held.append(old)
                continue
            if old.start < lock.start:
                held.append(old._replace(end=lock.start - 1))
            if old.end > lock.end:
                held.append(old._replace(start=lock.end + 1))
        if lock.kind != fcntl.F_UNLCK:
            held.append(lock)
        self.held = held

    def holds(self, lock: Lock) -> bool:
        """Whether *lock*, or a part of it, is held."""
        return any(_overlap(old, lock) and old.kind == lock.kind for old in self.held)

    def hinders(self, lock: Lock) -> bool:
        """Whether something held is in the way of another owner's *lock*."""
        return any(
            _overlap(old, lock) and fcntl.F_WRLCK in {old.kind, lock.kind} for old in self.held
        )


def _overlap(one: Lock, other: Lock) -> bool:
    return one.start <= other.end and other.start <= one.end


class LockTable:
    """The locks of one volume's users, by file and by owner."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[int, dict[int, _Owned]] = {}
        self._waiting: dict[int, list[tuple[int, Lock]]] = {}
        self._seen: dict[int, tuple[int, int, int]] = {}
        self.used = False
        """Whether there has ever been a lock of bytes, which ends when its owner closes the file.

        What was opened to be read before the first one, and for which no close is reported, keeps
        its locks until it is released.
        """

    def __len__(self) -> int:
        """How many descriptions are held."""
        return sum(len(owners) for owners in self._files.values())

    def conflict(self, target: Target, owner: int, lock: Lock) -> Lock | None:
        """What is in the way of *owner*'s *lock*.

        Its pid is that of a user of this volume or of a process of the host; nought or less for a
        lock of another volume's user, and for one that belongs to an open file description.
        """
        owned = self._find(target.file, owner)
        try:
            found = filecalls.conflicting_lock(owned.fd if owned else target.fd, lock)
        finally:
            if owned:
                self._leave(owned)
        if found is None or found.pid > 0:
            return found
        with self._lock:
            for other, holding in self._files.get(target.file, {}).items():
                if other != owner and holding.holds(found):
                    return found._replace(pid=holding.pid)
        return found

    def unlock(self, file: int, owner: int, lock: Lock) -> None:
        """Drop what *owner* holds of *lock*'s bytes of *file*."""
        with self._lock:
            owned = self._files.get(file, {}).get(owner)
            if owned is None:
                return
            owned.note(lock)
            owned.users += 1
        try:
            self._remember(file, owned.fd)
            filecalls.set_lock(owned.fd, lock)
        finally:
            self._leave(owned)

    def lock(self, target: Target, owner: int, lock: Lock, wait: Wait | None = None) -> bool:
        """Take *lock* for *owner*; with *wait*, as soon as nothing is in the way.

        Returns:
            Whether others may have changed the file since this volume last had a lock on it.

        Raises:
            OSError: EAGAIN, another lock is in the way; EINTR, *wait* was called back; EDEADLK, it
                would last for ever; EBADF, *owner* has closed the file meanwhile.
        """
        self.used = True
        try:
            return self._take(target, owner, lock, filecalls.set_lock)
        except BlockingIOError:
            if wait is None:
                raise
            running = wait.run
            with self._registered(target.file, owner, lock):
                return self._take(
                    *(target, owner, lock),
                    lambda fd, what: running(lambda: filecalls.wait_for_lock(fd, what)),
                )

    def flock(self, target: Target, kind: int, wait: Wait | None = None) -> bool:
        """Lock or unlock the whole file for this open file alone, by F_* *kind*, flock(2).

        Returns:
            As `lock`.

        Raises:
            OSError: EAGAIN, another lock is in the way; EINTR, *wait* was called back.
        """
        file, _, fd = target
        operation = _FLOCKS[kind]
        if kind == fcntl.F_UNLCK:
            self._remember(file, fd)
            fcntl.flock(fd, operation)
            return False
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait is None:
                raise
            wait.run(lambda: filecalls.wait_for_flock(fd, operation))
        return self._remember(file, fd)

    def closed(self, file: int, owner: int) -> None:
        """Drop all that *owner* holds of *file*: it has closed a descriptor of it."""
        if file not in self._files:
            return
        with self._lock:
            owned = self._files.get(file, {}).get(owner)
        if owned is not None:
            self._drop(file, owner, owned)

    def released(self, file: int, handle: int) -> None:
        """Drop what was locked by the name of *handle*: nobody has that open any more."""
        if file not in self._files:
            return
        with self._lock:
            owners = list(self._files.get(file, {}).items())
        for owner, owned in owners:
            if handle in owned.through:
                self._drop(file, owner, owned)

    def close(self) -> None:
        """Drop every lock."""
        with self._lock:
            files, self._files = self._files, {}
        for owners in files.values():
            for owned in owners.values():
                self._leave(owned)

    def _take(
        self, target: Target, owner: int, lock: Lock, take: Callable[[int, Lock], None]
    ) -> bool:
        while True:
            owned = self._owned(target, owner, lock)
            try:
                owned.through.add(target.handle)
                take(owned.fd, lock)
                with self._lock:
                    current = self._files.get(target.file, {}).get(owner)
                    if current is owned:
                        owned.note(lock)
                        owned.pid = lock.pid
                if current is owned:
                    return self._remember(target.file, owned.fd)
                # Others may be waiting on it still, who would keep what was just taken.
                filecalls.set_lock(owned.fd, NO_LOCK)
            finally:
                self._leave(owned)
            if current is None:
                raise os_error(errno.EBADF)

    def _owned(self, target: Target, owner: int, lock: Lock) -> _Owned:
        """The description that *lock* may be set on for *owner*, to be left later."""
        while True:
            owned = self._find(target.file, owner)
            if owned and (owned.writable or lock.kind != fcntl.F_WRLCK):
                return owned
            try:
                made = self._make(target, owner, lock, owned)
            finally:
                if owned:
                    self._leave(owned)
            if made:
                return made

    def _make(self, target: Target, owner: int, lock: Lock, before: _Owned | None) -> _Owned | None:
        """A description for *owner* in the place of *before*, to be left; None if another came.

        Open for writing only where *target* is, as a lock for writing needs it: it must not keep a
        program that is only read from being executed.
        """
        writable = fcntl.fcntl(target.fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if lock.kind == fcntl.F_WRLCK and not writable:
            raise os_error(errno.EBADF)
        access = os.O_RDWR if writable else os.O_RDONLY
        made = _Owned(os.open(fdpath.of(target.fd), access | os.O_CLOEXEC), writable=writable)
        held = before.held if before else []
        taken = False
        try:
            for old in held:
                # For reading, all of them, so that both descriptions can have them for a moment.
                filecalls.set_lock(made.fd, old)
            with self._lock:
                owners = self._files.setdefault(target.file, {})
                taken = owners.get(owner) is before and (not before or before.held is held)
                if taken:
                    owners[owner] = made
                    made.users += 1
                    made.held = held
            if taken and before:
                made.pid, made.through = before.pid, before.through
                filecalls.set_lock(before.fd, NO_LOCK)
                self._leave(before)
        finally:
            if not taken:
                self._leave(made)
        return made if taken else None

    def _find(self, file: int, owner: int) -> _Owned | None:
        """What *owner* has of *file*, to be left later."""
        with self._lock:
            owned = self._files.get(file, {}).get(owner)
            if owned:
                owned.users += 1
            return owned

    def _leave(self, owned: _Owned) -> None:
        """Use a description no longer; the last one to do so closes it."""
        with self._lock:
            owned.users -= 1
            last = not owned.users
        if last:
            os.close(owned.fd)

    def _drop(self, file: int, owner: int, owned: _Owned) -> None:
        with self._lock:
            owners = self._files.get(file, {})
            if owners.get(owner) is not owned:
                return
            del owners[owner]
            if not owners:
                del self._files[file]
        try:
            self._remember(file, owned.fd)
            # Not left to the description's end: somebody may be waiting on it, or about to.
            filecalls.set_lock(owned.fd, NO_LOCK)
        finally:
            self._leave(owned)

    def _remember(self, file: int, fd: int) -> bool:
        """Remember what *file* is like; gives whether that is not what was remembered."""
        attributes = os.fstat(fd)
        now = attributes.st_mtime_ns, attributes.st_ctime_ns, attributes.st_size
        with self._lock:
            before = self._seen.pop(file, None)
            self._seen[file] = now
            if len(self._seen) > _REMEMBERED:
                del self._seen[next(iter(self._seen))]
        return before != now

    def forget_content(self, file: int) -> None:
        """Have the next lock of *file* find the content changed."""
        with self._lock:
            self._seen.pop(file, None)

    @contextmanager
    def _registered(self, file: int, owner: int, lock: Lock) -> Iterator[None]:
        """A guard: inside it, *owner* is known to wait for *lock*.

        Raises:
            OSError: EDEADLK, whom it would wait for waits for it, or for somebody who does.
        """
        waited = (file, lock)
        with self._lock:
            self._waiting.setdefault(owner, []).append(waited)
        try:
            with self._lock:
                if self._goes_round(owner):
                    raise os_error(errno.EDEADLK)
            yield
        finally:
            with self._lock:
                self._waiting[owner].remove(waited)
                if not self._waiting[owner]:
                    del self._waiting[owner]

    def _goes_round(self, owner: int) -> bool:
        """Whether the way from *owner* to whom it waits for, and on, leads back; under the lock."""
        reached: set[int] = set()
        ahead = [owner]
        while ahead:
            waiter = ahead.pop()
            for file, lock in self._waiting.get(waiter, ()):
                for other, owned in self._files.get(file, {}).items():
                    if other == waiter or not owned.hinders(lock):
                        continue
                    if other == owner:
                        return True
                    if other not in reached:
                        reached.add(other)
                        ahead.append(other)
        return False

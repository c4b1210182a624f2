"""Holders of locks and waiters for them: no two processes ever hold what excludes each other.

The processes share memory with a byte for each process and each thing to lock. A process notes
there how it holds the thing, after it has got the lock and until it gives the lock up. Under an
exclusive lock it counts in a file. A signal interrupts some waits, which are then given up.
"""

import errno
import fcntl
import mmap
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product

from tests.soak.model import WrongError, expect
from tests.standby.load import Load, Task
from tests.support.tools.callers import Caller

PROCESSES = 5
FILES = ("a", "b")
RANGES = 2
KINDS = ("posix", "ofd", "flock")
SHARED, EXCLUSIVE = 1, 2
INTERRUPTED_S = 0.02
LONG_S = 0.2
_COUNT = struct.Struct("<Q")
_FLOCK = struct.Struct("hhqqi4x")  # struct flock, fcntl_locking(2)
_TYPES = {0: fcntl.F_UNLCK, SHARED: fcntl.F_RDLCK, EXCLUSIVE: fcntl.F_WRLCK}
_OPERATIONS = {0: fcntl.LOCK_UN, SHARED: fcntl.LOCK_SH, EXCLUSIVE: fcntl.LOCK_EX}

# POSIX locks and locks of open file descriptions exclude each other, so both lock one set of
# things. flock(2) locks only whole files, fcntl_locking(2).
THINGS = tuple(product(FILES, range(RANGES))) + tuple((name, RANGES) for name in FILES)


class _Interrupt(Exception):  # noqa: N818 - a signal, and no error
    """The signal that ends a wait."""


def lock(fd: int, kind: str, what: int, how: int, *, wait: bool) -> None:
    """Lock the byte *what* of a file, or the file, or unlock it if *how* is 0.

    Raises:
        BlockingIOError: it is locked, and *wait* is false.
    """
    if kind == "flock":
        fcntl.flock(fd, _OPERATIONS[how] | (0 if wait else fcntl.LOCK_NB))
        return
    command = {
        ("posix", False): fcntl.F_SETLK,
        ("posix", True): fcntl.F_SETLKW,
        ("ofd", False): fcntl.F_OFD_SETLK,
        ("ofd", True): fcntl.F_OFD_SETLKW,
    }[kind, wait]
    fcntl.fcntl(fd, command, _FLOCK.pack(_TYPES[how], os.SEEK_SET, what, 1, 0))


class Holders(Load):
    """The processes that lock."""

    def prepare(self) -> None:
        """Make the files to lock, and for each thing a file with its count."""
        self.board = mmap.mmap(-1, PROCESSES * len(THINGS))
        counts = [f"count{thing}" for thing in range(len(THINGS))]
        for name in (*FILES, *counts):
            path = self.place.beneath / name
            path.touch()
            path.chmod(0o666)

    def tasks(self) -> Sequence[tuple[Caller, Callable[[], Task]]]:
        """Return the processes."""
        return [(self.caller(n), partial(_Process, self, n)) for n in range(PROCESSES)]

    def wrong(self, results: Sequence[object]) -> list[str]:
        """Compare the counts in the files with those of the processes."""
        found = []
        done = [result for result in results if isinstance(result, list)]
        for thing, (name, what) in enumerate(THINGS):
            data = (self.place.beneath / f"count{thing}").read_bytes() or bytes(_COUNT.size)
            (count,) = _COUNT.unpack(data)
            right = sum(counts[thing] for counts in done)
            if count != right:
                found.append(f"{name}, {what}: counted to {count}, expected {right}")
        self.board.close()
        return found


class _Process:
    def __init__(self, load: Holders, number: int) -> None:
        self.steps = load.steps(number)
        self._number = number
        self._board = load.board
        self._counts = [0] * len(THINGS)
        self._top = str(load.place.seen)
        # POSIX locks go when their process closes any descriptor of the file. So the descriptors
        # are opened once, and each kind of lock has its own.
        self._fds = {
            (name, kind): os.open(f"{self._top}/{name}", os.O_RDWR)
            for name, kind in product(FILES, KINDS)
        }
        signal.signal(signal.SIGALRM, self._interrupted)

    def _interrupted(self, *_: object) -> None:
        raise _Interrupt

    def step(self) -> None:
        """Lock something, hold it for a while, and unlock it."""
        rng = self.steps.rng
        thing = rng.randrange(len(THINGS))
        name, what = THINGS[thing]
        kind = "flock" if what == RANGES else rng.choice(("posix", "ofd"))
        how = rng.choice((SHARED, EXCLUSIVE, EXCLUSIVE))
        fd = self._fds[name, kind]
        self.steps.note(kind, name, what, how)
        if not self._get(fd, kind, what, how):
            return
        with self._noted(thing, how):
            if how == EXCLUSIVE:
                self._count(thing)
            time.sleep(rng.choice((0, 0, 0.001, 0.005, rng.random() * LONG_S)))
        lock(fd, kind, what, 0, wait=False)

    def _get(self, fd: int, kind: str, what: int, how: int) -> bool:
        """Lock, and return False if the lock is not held in the end."""
        way = self.steps.rng.choice(("wait", "wait", "try", "interrupt"))
        self.steps.note(" ", way)
        if way == "interrupt":
            return self._get_until_interrupted(fd, kind, what, how)
        try:
            lock(fd, kind, what, how, wait=way == "wait")
        except OSError as error:
            if way == "try" and error.errno == errno.EAGAIN:
                return False
            raise
        return True

    def _get_until_interrupted(self, fd: int, kind: str, what: int, how: int) -> bool:
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, self.steps.rng.random() * INTERRUPTED_S)
                lock(fd, kind, what, how, wait=True)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except _Interrupt:
            lock(fd, kind, what, 0, wait=False)  # the signal may have come after the lock
            return False
        return True

    @contextmanager
    def _noted(self, thing: int, how: int) -> Iterator[None]:
        """Note that this process holds a thing, and check that no other does meanwhile."""
        places = [process * len(THINGS) + thing for process in range(PROCESSES)]
        own = places.pop(self._number)
        self._board[own] = how
        try:
            self._check(places, thing, how)
            yield
            self._check(places, thing, how)
        finally:
            self._board[own] = 0

    def _check(self, others: Sequence[int], thing: int, how: int) -> None:
        held = [self._board[place] for place in others]
        if any(other == EXCLUSIVE or (other and how == EXCLUSIVE) for other in held):
            raise WrongError(f"{THINGS[thing]} is held as {how}, and by others as {held}")

    def _count(self, thing: int) -> None:
        """Raise the count of a thing."""
        fd = os.open(f"{self._top}/count{thing}", os.O_RDWR)
        try:
            before = os.pread(fd, _COUNT.size, 0)
            (number,) = _COUNT.unpack(before) if before else (0,)
            data = _COUNT.pack(number + 1)
            expect("written", os.pwrite(fd, data, 0), len(data))
        finally:
            os.close(fd)
        self._counts[thing] += 1

    def end(self) -> list[int]:
        """Close all files; return the counts of this process."""
        for fd in self._fds.values():
            os.close(fd)
        return self._counts

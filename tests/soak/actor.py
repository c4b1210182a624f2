"""A process in a directory of its own: operations on data, locks and open files."""

import errno
import fcntl
import mmap
import os
import random
import struct
import time
from collections.abc import Callable, Mapping

from tests.fuzz import calls
from tests.soak.model import (
    LONGEST,
    MOST_FILES,
    MOST_HELD,
    File,
    Model,
    Shown,
    WrongError,
    expect,
    opened,
)
from tests.support.tools.callers import Caller

RELEASE_S = 10.0
PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_FLOCK = struct.Struct("hhqqi4x")  # struct flock, fcntl_locking(2)

_COMMON: Mapping[str, int] = {
    **dict.fromkeys(("create", "write", "read"), 12),
    **dict.fromkeys(("unlink", "rename", "append", "status", "mapped"), 6),
    **dict.fromkeys(("link", "symlink", "truncate", "hold", "listing", "chmod", "set_xattr"), 4),
    **dict.fromkeys(("chown", "exchange", "mkdir", "rmdir", "move_directory", "remove_xattr"), 3),
    **dict.fromkeys(("locks", "open_locks", "copy", "utime", "refusals", "overwrite"), 2),
    **dict.fromkeys(("burst", "sync"), 1),
}
# pyfuse3 has no handlers for these; docs/sessions.md.
_KERNEL: Mapping[str, int] = {"tmpfile": 3, "punch": 3}
WEIGHTS: Mapping[str, Mapping[str, int]] = {"kernel": {**_COMMON, **_KERNEL}, "libfuse": _COMMON}
"""Session -> operation -> its weight in the random choice."""


class Actor(Model):
    """One process in its own directory."""

    def __init__(self, caller: Caller, rng: random.Random, session: str) -> None:
        super().__init__(caller, rng)
        self._operations = list(WEIGHTS[session])
        self._weights = list(WEIGHTS[session].values())

    def step(self) -> None:
        """Run one random operation."""
        (name,) = self.rng.choices(self._operations, self._weights)
        getattr(self, name)()
        while len(self.files) > MOST_FILES:
            self.unlink()

    def finish(self) -> dict[str, Shown]:
        """Check and close all held files, and return the expected tree."""
        self.end()
        return self.expected()

    def write(self) -> None:
        with self.any_open(os.O_RDWR) as (fd, file):
            offset, data = self.offset(file), self.data()
            self.remember("write", offset, len(data))
            expect("written", os.pwrite(fd, data, offset), len(data))
            file.put(offset, data)
            size = os.fstat(fd).st_size
            expect("size after a write", size, len(file.content))

    def append(self) -> None:
        path = self.path()
        file, data = self.files[path], self.data()
        if len(file.content) > LONGEST:
            return
        self.remember("append", path, len(data))
        with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            expect("appended", os.write(fd, data), len(data))
        file.put(len(file.content), data)

    def overwrite(self) -> None:
        path, data = self.path(), self.data()
        self.remember("overwrite", path, len(data))
        with opened(path, os.O_WRONLY | os.O_TRUNC) as fd:
            expect("written", os.write(fd, data), len(data))
        self.files[path].content[:] = data

    def read(self) -> None:
        with self.any_open(os.O_RDONLY) as (fd, file):
            offset = self.rng.randint(0, len(file.content))
            size = self.rng.randint(1, LONGEST)
            self.remember("read", offset, size)
            right = bytes(file.content[offset : offset + size])
            expect(f"read at {offset}", os.pread(fd, size, offset), right)

    def truncate(self) -> None:
        path, size = self.path(), self.rng.randint(0, self.rng.choice((10, 5_000, 100_000)))
        self.remember("truncate", path, size)
        os.truncate(path, size)
        self.files[path].resize(size)
        self.check(path, os.stat(path), self.files[path])

    def mapped(self) -> None:
        """Check a shared mapping, store into it, and read the stored bytes."""
        with self.any_open(os.O_RDWR) as (fd, file):
            size = len(file.content)
            self.remember("mapped", size)
            if not size:
                return
            offset = self.rng.randrange(size)
            data = self.data()[: size - offset]
            with mmap.mmap(fd, size) as mapping:
                expect("mapped", mapping[:], bytes(file.content))
                mapping[offset : offset + len(data)] = data
                if self.rng.random() < 0.5:
                    mapping.flush()
            file.put(offset, data)
            expect("read after a store", os.pread(fd, len(data), offset), data)

    def copy(self) -> None:
        one, two = self.path(), self.path()
        source, target = self.files[one], self.files[two]
        if source is target:
            return
        self.remember("copy", one, two)
        with opened(one, os.O_RDONLY) as reader, opened(two, os.O_WRONLY | os.O_TRUNC) as writer:
            left = len(source.content)
            while left:
                done = os.copy_file_range(reader, writer, left)
                if not done:
                    raise WrongError(f"{left} bytes of {one} were not copied to {two}")
                left -= done
        target.content[:] = source.content

    def punch(self) -> None:
        with self.any_open(os.O_RDWR) as (fd, file):
            if not file.content:
                return
            offset = self.rng.randrange(len(file.content))
            size = self.rng.randint(1, len(file.content) - offset)
            self.remember("punch", offset, size)
            calls.fallocate(fd, PUNCH_HOLE, offset, size)
            file.put(offset, bytes(size))

    def tmpfile(self) -> None:
        """Make a file without a name, and link it."""
        path, data = self.free("t"), self.data()
        self.remember("tmpfile", path)
        with opened(os.path.dirname(path) or ".", os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
            file = File(0o640, self.caller.uid, self.caller.gid)
            self.check("a file without a name", os.fstat(fd), file)
            os.write(fd, data)
            # Python calls linkat(2), which follows the link in /proc, only with a directory; the
            # absolute path ignores it.
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd)
        file.put(0, data)
        file.names.add(path)
        self.files[path] = file

    def hold(self) -> None:
        """Keep a file open, even if its names are removed later."""
        if len(self.held) >= MOST_HELD:
            fd, file = self.held.pop(self.rng.randrange(MOST_HELD))
            self.remember("close held", fd, sorted(file.names))
            expect("content of a held file", os.pread(fd, 2 * LONGEST, 0), bytes(file.content))
            os.close(fd)
        path = self.path()
        self.remember("hold", path)
        self.held.append((os.open(path, os.O_RDWR), self.files[path]))

    def sync(self) -> None:
        with self.any_open(os.O_RDWR) as (fd, _):
            self.remember("sync")
            self.rng.choice((os.fsync, os.fdatasync))(fd)
        with opened(self.directory() or ".", os.O_DIRECTORY) as fd:
            os.fsync(fd)

    def locks(self) -> None:
        """Lock for the process, lockf(3), and for one open file against another, flock(2)."""
        path = self.path()
        self.remember("locks", path)
        with opened(path, os.O_RDWR) as one, opened(path, os.O_RDWR) as two:
            start = self.rng.randrange(1_000)
            _retry_locked(lambda: fcntl.lockf(one, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, start))
            fcntl.lockf(two, fcntl.LOCK_SH | fcntl.LOCK_NB, 50, start)  # the same owner
            _retry_locked(lambda: fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB))
            self.refused(errno.EAGAIN, lambda: fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB))
            fcntl.flock(one, fcntl.LOCK_UN)
            fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def open_locks(self) -> None:
        """Lock for an open file description, fcntl_locking(2), and release by close(2).

        close(2) does not wait until the worker has released the lock.
        """
        path = self.path()
        self.remember("open locks", path)
        lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
        with opened(path, os.O_RDWR) as one:
            with opened(path, os.O_RDWR) as two:
                _retry_locked(lambda: fcntl.fcntl(two, fcntl.F_OFD_SETLK, lock))
                self.refused(errno.EAGAIN, lambda: fcntl.fcntl(one, fcntl.F_OFD_SETLK, lock))
            _retry_locked(lambda: fcntl.fcntl(one, fcntl.F_OFD_SETLK, lock))


def _retry_locked(call: Callable[[], object]) -> None:
    """Repeat *call* for up to 10 s while a lock refuses it.

    A lock of a closed file is released shortly after close(2), docs/sessions.md.
    """
    deadline = time.monotonic() + RELEASE_S
    while True:
        try:
            call()
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return

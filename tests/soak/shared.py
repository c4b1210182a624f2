"""A directory with few names, on which several processes race.

A process cannot know the file behind a name at the time of a call. So each operation has a set of
allowed errors, and any other error is wrong. These results are certain in spite of the race:

- A file belongs to the process that has created it.
- A name that was made with O_EXCL belongs to its maker alone.
- No appended record is lost or torn.
- A count that all processes raise under a lock is the sum of their steps.
"""

import errno
import fcntl
import os
import random
import struct
import zlib
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tests.fuzz import calls
from tests.soak.model import REMEMBERED_STEPS, WrongError, expect, opened
from tests.support.tools.callers import Caller

NAMES = tuple(f"n{number}" for number in range(8))
INSIDE = ("n0/a", "n1/a", "n2/b")
LEDGER, MUTEX = "ledger", "mutex"
COUNTERS = ("counted by lockf", "counted by flock")
LASTING = (LEDGER, *COUNTERS)
LONGEST_BYTES = 50_000

_RECORD = struct.Struct("<II")
_NUMBER = struct.Struct("<Q")
_PADDING = b"." * 41

# A directory of the path is gone, was never made, or is of another type.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_OPENED = _GONE | {errno.EISDIR}
_MADE = _GONE | {errno.EEXIST}


class _Row(NamedTuple):
    weight: int
    may_fail: frozenset[int]


ROWS: Mapping[str, _Row] = {
    "create": _Row(6, _MADE),
    "open_or_create": _Row(6, _OPENED),
    "read": _Row(6, _OPENED),
    "status": _Row(6, _GONE),
    "unlink": _Row(6, _GONE | {errno.EISDIR}),
    "rename": _Row(6, _GONE | {errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.EINVAL}),
    "rename_if_free": _Row(3, _MADE | {errno.EINVAL}),
    "exchange": _Row(3, _GONE | {errno.EINVAL}),
    # EPERM: for directories, and for special files of other users (protected_hardlinks).
    "link": _Row(4, _MADE | {errno.EPERM}),
    "symlink": _Row(4, _MADE),
    "mkdir": _Row(4, _MADE),
    "rmdir": _Row(4, _GONE | {errno.ENOTEMPTY, errno.EEXIST}),
    "truncate": _Row(3, _OPENED),
    "listing": _Row(3, frozenset()),
    "listing_inside": _Row(2, _GONE),
    # EPERM: for files that are neither regular nor directories, xattr(7).
    "set_xattr": _Row(2, _GONE | {errno.EPERM}),
    "claim": _Row(3, frozenset({errno.EEXIST})),
    "append_record": _Row(6, frozenset()),
    "count_by_lockf": _Row(4, frozenset()),
    "count_by_flock": _Row(4, frozenset()),
}


def prepare(directory: str) -> None:
    """Make the directory, in which all users may write, and the lasting files."""
    os.mkdir(directory)
    os.chmod(directory, 0o777)
    for name in LASTING:
        path = os.path.join(directory, name)
        with opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
            os.fchmod(fd, 0o666)


class Racer:
    """One of the processes that race."""

    def __init__(self, caller: Caller, rng: random.Random, directory: str, number: int) -> None:
        """Race in *directory*; *number* identifies this process."""
        self.caller = caller
        self.rng = rng
        self.number = number
        self.done: Counter[str] = Counter()
        self.steps: deque[str] = deque(maxlen=REMEMBERED_STEPS)
        self._directory = directory
        self._weights = [row.weight for row in ROWS.values()]

    def step(self) -> None:
        """Run one operation, which may fail with the errors in its row."""
        (name,) = self.rng.choices(list(ROWS), self._weights)
        self.steps.append(name)
        try:
            operation: Callable[[], None] = getattr(self, name)
            operation()
        except OSError as error:
            if error.errno not in ROWS[name].may_fail:
                raise
        else:
            self.done[name] += 1

    def at(self, name: str) -> str:
        """Return the path of *name*."""
        return os.path.join(self._directory, name)

    def any_path(self) -> str:
        """Return the path of a random name, which may be of any type or absent."""
        name = self.rng.choice(NAMES + INSIDE)
        self.steps.append(f"  {name}")
        return self.at(name)

    def create(self) -> None:
        with opened(self.any_path(), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666) as fd:
            self._is_ours(fd)
            data = self.rng.randbytes(100)
            os.write(fd, data)

    def _is_ours(self, fd: int) -> None:
        """Check that a file belongs to the process that has created it."""
        status = os.fstat(fd)
        owner = (oct(status.st_mode & 0o7777), status.st_uid, status.st_gid)
        expect("a file just created", owner, (oct(0o666), self.caller.uid, self.caller.gid))

    def open_or_create(self) -> None:
        with opened(self.any_path(), os.O_CREAT | os.O_RDWR, 0o666) as fd:
            self._pile_up(fd)

    def _pile_up(self, fd: int) -> None:
        os.pwrite(fd, self.rng.randbytes(500), self.rng.randrange(LONGEST_BYTES))

    def read(self) -> None:
        with opened(self.any_path(), os.O_RDWR) as fd:
            self._pile_up(fd)
            while os.read(fd, LONGEST_BYTES):
                pass

    def status(self) -> None:
        os.stat(self.any_path(), follow_symlinks=self.rng.random() < 0.5)

    def unlink(self) -> None:
        os.unlink(self.any_path())

    def rename(self) -> None:
        os.rename(self.any_path(), self.any_path())

    def rename_if_free(self) -> None:
        old, new = os.fsencode(self.any_path()), os.fsencode(self.any_path())
        calls.renameat2(old, new, calls.RENAME_NOREPLACE)

    def exchange(self) -> None:
        old, new = os.fsencode(self.any_path()), os.fsencode(self.any_path())
        calls.renameat2(old, new, calls.RENAME_EXCHANGE)

    def link(self) -> None:
        os.link(self.any_path(), self.any_path(), follow_symlinks=False)

    def symlink(self) -> None:
        os.symlink(self.rng.choice(NAMES), self.any_path())

    def mkdir(self) -> None:
        os.mkdir(self.any_path(), 0o777)

    def rmdir(self) -> None:
        os.rmdir(self.any_path())

    def truncate(self) -> None:
        os.truncate(self.any_path(), self.rng.randrange(LONGEST_BYTES))

    def listing(self) -> None:
        """List: lasting names must be there, other known names may be, readdir(3)."""
        seen = os.listdir(self._directory)
        expect("strange names", set(seen) - {*NAMES, *LASTING, MUTEX}, set())
        expect("missing names", set(LASTING) - set(seen), set())

    def listing_inside(self) -> None:
        for entry in os.scandir(self.at(self.rng.choice(NAMES))):
            entry.stat(follow_symlinks=False)

    def set_xattr(self) -> None:
        os.setxattr(self.any_path(), "user.race", self.rng.randbytes(20))

    def claim(self) -> None:
        """Make a name with O_EXCL: until its removal no other process has it."""
        path, mark = self.at(MUTEX), self.rng.randbytes(16)
        with opened(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600) as fd:
            os.write(fd, mark)
            with opened(path, os.O_RDONLY) as again:
                expect("content of a claimed file", os.read(again, 100), mark)
            expect("links of a claimed file", os.fstat(fd).st_nlink, 1)
            os.unlink(path)

    def append_record(self) -> None:
        """Append a record with the number of the process and a checksum."""
        entry = _RECORD.pack(self.number, self.done["append_record"]) + _PADDING
        entry += zlib.crc32(entry).to_bytes(4, "little")
        with opened(self.at(LEDGER), os.O_WRONLY | os.O_APPEND) as fd:
            expect("appended", os.write(fd, entry), len(entry))

    def count_by_lockf(self) -> None:
        """Add 1 under a lock, and wait for the lock if needed."""
        with opened(self.at(COUNTERS[0]), os.O_RDWR) as fd:
            fcntl.lockf(fd, fcntl.LOCK_EX)
            self._count(fd)

    def count_by_flock(self) -> None:
        with opened(self.at(COUNTERS[1]), os.O_RDWR) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            self._count(fd)

    def _count(self, fd: int) -> None:
        before = os.pread(fd, _NUMBER.size, 0)
        (number,) = _NUMBER.unpack(before) if before else (0,)
        os.pwrite(fd, _NUMBER.pack(number + 1), 0)


def wrong(directory: str, done: list[Counter[str]]) -> list[str]:
    """Return a line for each wrong result in the lasting files.

    *done* has the counts of each process.
    """
    found = []
    operations = ("count_by_lockf", "count_by_flock")
    for name, operation in zip(COUNTERS, operations, strict=True):
        with opened(os.path.join(directory, name), os.O_RDONLY) as fd:
            (number,) = _NUMBER.unpack(os.read(fd, 100) or bytes(8))
        right = sum(counts[operation] for counts in done)
        if number != right:
            found.append(f"{directory}: {name}: {number}, expected {right}")
    try:
        _check_ledger(os.path.join(directory, LEDGER), done)
    except WrongError as error:
        found.append(f"{directory}: {error}")
    return found


def _check_ledger(path: str, done: list[Counter[str]]) -> None:
    """Check that each record is whole, and that those of each process are complete, in order."""
    size = _RECORD.size + len(_PADDING) + 4
    entered: dict[int, list[int]] = {number: [] for number in range(len(done))}
    with open(path, "rb") as ledger:
        while entry := ledger.read(size):
            if zlib.crc32(entry[:-4]).to_bytes(4, "little") != entry[-4:]:
                raise WrongError(f"{LEDGER}: torn before {ledger.tell()}: {entry!r}")
            number, place = _RECORD.unpack_from(entry)
            entered[number].append(place)
    for number, places in entered.items():
        expect(f"records of process {number}", len(places), done[number]["append_record"])
        expect(f"order of records, {number}", places, list(range(len(places))))

"""What several processes have in common: few names, on which they race.

Nobody knows what a name leads to by the time of a call. So each operation has the errors that it
may meet, and any other one is wrong. What can be known in spite of the race is checked: who creates
a file owns it, who made a name exclusively has it for itself, nothing that was appended is lost or
torn, and a count that each raises under a lock comes out as the sum.
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
from tests.soak.own import REMEMBERED_STEPS, WrongError, expect, opened
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

# Where a directory of the path went, or was never there, or is something else.
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
    # EPERM: of directories, and of what is somebody else's and no file (protected_hardlinks).
    "link": _Row(4, _MADE | {errno.EPERM}),
    "symlink": _Row(4, _MADE),
    "mkdir": _Row(4, _MADE),
    "rmdir": _Row(4, _GONE | {errno.ENOTEMPTY, errno.EEXIST}),
    "truncate": _Row(3, _OPENED),
    "listing": _Row(3, frozenset()),
    "listing_inside": _Row(2, _GONE),
    # EPERM: neither files nor directories have such attributes.
    "set_xattr": _Row(2, _GONE | {errno.EPERM}),
    "claim": _Row(3, frozenset({errno.EEXIST})),
    "enter": _Row(6, frozenset()),
    "count_by_lockf": _Row(4, frozenset()),
    "count_by_flock": _Row(4, frozenset()),
}


def prepare(directory: str) -> None:
    """Make the files that last; the directory is everybody's."""
    os.mkdir(directory)
    os.chmod(directory, 0o777)
    for name in LASTING:
        path = os.path.join(directory, name)
        with opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
            os.fchmod(fd, 0o666)


class Racer:
    """One of the processes that race."""

    def __init__(self, who: Caller, chance: random.Random, directory: str, number: int) -> None:
        """Race in *directory*; *number* tells this process from the others."""
        self.who = who
        self.chance = chance
        self.number = number
        self.done: Counter[str] = Counter()
        self.steps: deque[str] = deque(maxlen=REMEMBERED_STEPS)
        self._directory = directory
        self._weights = [row.weight for row in ROWS.values()]

    def step(self) -> None:
        """Do one operation, which may fail as its row says."""
        (name,) = self.chance.choices(list(ROWS), self._weights)
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
        """The path of *name*."""
        return os.path.join(self._directory, name)

    def any(self) -> str:
        """The path of a name that may be anything."""
        name = self.chance.choice(NAMES + INSIDE)
        self.steps.append(f"  {name}")
        return self.at(name)

    def create(self) -> None:
        with opened(self.any(), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666) as fd:
            self._is_ours(fd)
            data = self.chance.randbytes(100)
            os.write(fd, data)

    def _is_ours(self, fd: int) -> None:
        """Whoever creates a file owns it."""
        status = os.fstat(fd)
        owner = (oct(status.st_mode & 0o7777), status.st_uid, status.st_gid)
        expect("a file just created", owner, (oct(0o666), self.who.uid, self.who.gid))

    def open_or_create(self) -> None:
        with opened(self.any(), os.O_CREAT | os.O_RDWR, 0o666) as fd:
            self._pile_up(fd)

    def _pile_up(self, fd: int) -> None:
        os.pwrite(fd, self.chance.randbytes(500), self.chance.randrange(LONGEST_BYTES))

    def read(self) -> None:
        with opened(self.any(), os.O_RDWR) as fd:
            self._pile_up(fd)
            while os.read(fd, LONGEST_BYTES):
                pass

    def status(self) -> None:
        os.stat(self.any(), follow_symlinks=self.chance.random() < 0.5)

    def unlink(self) -> None:
        os.unlink(self.any())

    def rename(self) -> None:
        os.rename(self.any(), self.any())

    def rename_if_free(self) -> None:
        old, new = os.fsencode(self.any()), os.fsencode(self.any())
        calls.renameat2(old, new, calls.RENAME_NOREPLACE)

    def exchange(self) -> None:
        old, new = os.fsencode(self.any()), os.fsencode(self.any())
        calls.renameat2(old, new, calls.RENAME_EXCHANGE)

    def link(self) -> None:
        os.link(self.any(), self.any(), follow_symlinks=False)

    def symlink(self) -> None:
        os.symlink(self.chance.choice(NAMES), self.any())

    def mkdir(self) -> None:
        os.mkdir(self.any(), 0o777)

    def rmdir(self) -> None:
        os.rmdir(self.any())

    def truncate(self) -> None:
        os.truncate(self.any(), self.chance.randrange(LONGEST_BYTES))

    def listing(self) -> None:
        """Names that come and go may show or not, those that last must show, readdir(3)."""
        seen = os.listdir(self._directory)
        expect("strange names", set(seen) - {*NAMES, *LASTING, MUTEX}, set())
        expect("missing names", set(LASTING) - set(seen), set())

    def listing_inside(self) -> None:
        for entry in os.scandir(self.at(self.chance.choice(NAMES))):
            entry.stat(follow_symlinks=False)

    def set_xattr(self) -> None:
        os.setxattr(self.any(), "user.race", self.chance.randbytes(20))

    def claim(self) -> None:
        """Make a name exclusively: until it is removed, nobody else gets or touches it."""
        path, mark = self.at(MUTEX), self.chance.randbytes(16)
        with opened(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600) as fd:
            os.write(fd, mark)
            with opened(path, os.O_RDONLY) as again:
                expect("content of what was claimed", os.read(again, 100), mark)
            expect("links of what was claimed", os.fstat(fd).st_nlink, 1)
            os.unlink(path)

    def enter(self) -> None:
        """Append a record, which says by whom it is and that it is whole."""
        entry = _RECORD.pack(self.number, self.done["enter"]) + _PADDING
        entry += zlib.crc32(entry).to_bytes(4, "little")
        with opened(self.at(LEDGER), os.O_WRONLY | os.O_APPEND) as fd:
            expect("appended", os.write(fd, entry), len(entry))

    def count_by_lockf(self) -> None:
        """Under a lock, for which one waits."""
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
    """What does not add up in the end, in the files that last; *done* is that of each process."""
    found = []
    operations = ("count_by_lockf", "count_by_flock")
    for name, operation in zip(COUNTERS, operations, strict=True):
        with opened(os.path.join(directory, name), os.O_RDONLY) as fd:
            (number,) = _NUMBER.unpack(os.read(fd, 100) or bytes(8))
        right = sum(counts[operation] for counts in done)
        if number != right:
            found.append(f"{directory}: {name}: {number}, where it should be {right}")
    try:
        _check_ledger(os.path.join(directory, LEDGER), done)
    except WrongError as error:
        found.append(f"{directory}: {error}")
    return found


def _check_ledger(path: str, done: list[Counter[str]]) -> None:
    """Check that each record is whole, and that each process has all of its own, in their order."""
    size = _RECORD.size + len(_PADDING) + 4
    entered: dict[int, list[int]] = {number: [] for number in range(len(done))}
    with open(path, "rb") as ledger:
        while entry := ledger.read(size):
            if zlib.crc32(entry[:-4]).to_bytes(4, "little") != entry[-4:]:
                raise WrongError(f"{LEDGER}: torn before {ledger.tell()}: {entry!r}")
            number, place = _RECORD.unpack_from(entry)
            entered[number].append(place)
    for number, places in entered.items():
        expect(f"records of process {number}", len(places), done[number]["enter"])
        expect(f"their order, {number}", places, list(range(len(places))))

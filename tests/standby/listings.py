"""Listings of a large directory that changes: each name that stays appears once in each listing.

readdir(3) leaves open whether a listing has the names that appear, go or change meanwhile.
"""

import ctypes
import os
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tests.soak.model import WrongError, expect
from tests.standby.load import Load, Task
from tests.support.tools.callers import Caller
from tests.support.tools.host_calls import getdents64

STABLE = 600
CHANGING = 60
READERS, CHANGERS = 2, 2
SHOWN = 10
PAUSES = 3
PAUSE_S = 0.02
# struct linux_dirent64 up to its name: d_ino, d_off, d_reclen, d_type; getdents64(2)
_RECORD = struct.Struct("=QqHB")


def entries(fd: int, size: int) -> Iterator[tuple[str, int]]:
    """Yield the next names of a directory, as many as fit *size* bytes, with their offsets."""
    buffer = ctypes.create_string_buffer(size)
    filled = getdents64(fd, buffer)
    data = buffer.raw[:filled]
    while data:
        _, offset, length, _ = _RECORD.unpack_from(data)
        name = data[_RECORD.size : length]
        yield os.fsdecode(name[: name.index(b"\0")]), offset
        data = data[length:]


class Listings(Load):
    """Readers of one directory, and processes that change it."""

    SHORT = False

    def prepare(self) -> None:
        """Make the names that stay."""
        for number in range(STABLE):
            (self.place.beneath / f"stable{number}").touch()

    def tasks(self) -> Sequence[tuple[Caller, Callable[[], Task]]]:
        """Return the readers, then the others."""
        readers = [(self.caller(n), partial(_Reader, self, n)) for n in range(READERS)]
        return [
            *readers,
            *((self.caller(n), partial(_Changer, self, n)) for n in range(CHANGERS)),
        ]

    def wrong(self, results: Sequence[object]) -> list[str]:
        """Compare the names on both sides with those expected."""
        own = [result for result in results if isinstance(result, set)]
        right = set[str]().union(_stable(), *own)
        return [
            f"{side}: missing or too many: {sorted(odd)[:SHOWN]}"
            for side in {self.place.seen, self.place.beneath}
            if (odd := right ^ set(os.listdir(side)))
        ]


def _stable() -> set[str]:
    return {f"stable{number}" for number in range(STABLE)}


class _Reader:
    def __init__(self, load: Listings, number: int) -> None:
        self.steps = load.steps(number)
        self._fd = os.open(load.place.seen, os.O_RDONLY | os.O_DIRECTORY)

    def step(self) -> None:
        """List the directory once, with pauses; perhaps go back to an offset in between."""
        rng = self.steps.rng
        size = rng.choice((1_000, 4_096, 32_768))
        self.steps.note("list by", size)
        os.lseek(self._fd, 0, os.SEEK_SET)
        seen: list[tuple[str, int]] = []
        pauses = 0
        back = rng.random() < 0.3
        while part := list(entries(self._fd, size)):
            seen += part
            if back and rng.random() < 0.1:
                back = False
                del seen[rng.randrange(len(seen)) + 1 :]
                self.steps.note("back to", *seen[-1])
                os.lseek(self._fd, seen[-1][1], os.SEEK_SET)
            if pauses < PAUSES and rng.random() < 0.2:
                pauses += 1
                time.sleep(rng.random() * PAUSE_S)
        _check(name for name, _ in seen)

    def end(self) -> None:
        """Close the directory."""
        os.close(self._fd)


def _check(names: Iterator[str]) -> None:
    times = Counter(names)
    stable = _stable()
    if missing := stable - times.keys():
        raise WrongError(f"{len(missing)} names are missing: {sorted(missing)[:SHOWN]}")
    if twice := [name for name in stable if times[name] > 1]:
        raise WrongError(f"{len(twice)} names appear several times: {sorted(twice)[:SHOWN]}")
    strange = [name for name in times if not name.startswith(("stable", "changing", "."))]
    expect("strange names", strange, [])


class _Changer:
    def __init__(self, load: Listings, number: int) -> None:
        self.steps = load.steps(READERS + number)
        self._top = str(load.place.seen)
        self._prefix = f"changing{number}."
        self._present: set[str] = set()

    def step(self) -> None:
        """Make a name, remove it, or rename it."""
        rng = self.steps.rng
        name, other = (f"{self._prefix}{rng.randrange(CHANGING)}" for _ in range(2))
        path = f"{self._top}/{name}"
        if name not in self._present:
            self.steps.note("create", name)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            self._present.add(name)
        elif rng.random() < 0.5:
            self.steps.note("unlink", name)
            os.unlink(path)
            self._present.discard(name)
        else:
            self.steps.note("rename", name, other)
            os.rename(path, f"{self._top}/{other}")
            self._present.discard(name)
            self._present.add(other)
        time.sleep(rng.random() * 0.002)

    def end(self) -> set[str]:
        """Return the names that it has left."""
        return self._present

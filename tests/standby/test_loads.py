"""The loads by themselves: on a bare directory they find nothing wrong, and they find each fault.

A fault is a call that does something else than it should, or a change of a file beneath a program.
"""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.standby import appends, holders, listings, server, storm, xattrs
from tests.standby.appends import Appends
from tests.standby.database import Database
from tests.standby.holders import Holders
from tests.standby.listings import Listings
from tests.standby.load import Load, Place, Running
from tests.standby.maps import Maps
from tests.standby.mixed import Mixed
from tests.standby.repository import Repository
from tests.standby.server import Server
from tests.standby.storm import Storm
from tests.standby.verified import Verified
from tests.standby.xattrs import Xattrs
from tests.support.tools.callers import OTHER, USER

LIMIT_S = 60.0
DISTANCE = 61
SHORT_STEPS, LONG_STEPS = 200, 2
"""A load runs until each task has done this many steps, or an error ends one."""
TRIES = 5

LOADS: Mapping[str, type[Load]] = {
    kind.__name__: kind
    for kind in (
        *(Appends, Database, Holders, Listings, Maps, Mixed, Repository, Server, Storm),
        *(Verified, Xattrs),
    )
}
pytestmark = pytest.mark.slow
needs_postgres = pytest.mark.skipif(server.programs() is None, reason="PostgreSQL is missing")
each = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(LOADS[name], id=name, marks=needs_postgres if name == "Server" else [])
        for name in LOADS
    ],
)


def run(kind: type[Load], base: Path, spoil: Callable[[Path], None] | None = None) -> list[str]:
    """Run a load on a bare directory; call *spoil* with the directory shortly before the end."""
    place = Place(base / "seen", base / "seen", base / "twin")
    with ExitStack() as stack:
        running = Running(stack, {kind.__name__: kind(place, (USER, OTHER), "seed")})
        limit = time.monotonic() + LIMIT_S
        while time.monotonic() < limit and not running.ended():
            if running.steps()[kind.__name__] >= (SHORT_STEPS if kind.SHORT else LONG_STEPS):
                break
            time.sleep(0.01)
        if spoil is not None:
            spoil(place.beneath)
        return running.finish(LIMIT_S)


@each
def test_a_bare_directory_has_right_results(kind: type[Load], base: Path) -> None:
    assert run(kind, base) == []


def _sometimes(fault: Callable[..., object], right: Callable[..., object]) -> Callable[..., object]:
    """Return a function that calls *fault* in place of *right* at each seventh call."""
    calls = 0

    def call(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        return (fault if calls % 7 == 0 else right)(*arguments, **named)

    return call


def _fails_afterwards(right: Callable[..., object], number: int) -> Callable[..., object]:
    """Return a function that does what *right* does, in the mount, and then fails."""

    def call(*arguments: object) -> object:
        result = right(*arguments)
        if "/twin/" not in str(arguments[0]):
            raise OSError(number, os.strerror(number))
        return result

    return call


def _not_in_mount(right: Callable[..., object]) -> Callable[..., object]:
    """Return a function that does nothing in the mount, and *right* in the twin directory."""
    return lambda *arguments: right(*arguments) if "/twin/" in str(arguments[0]) else None


def _twice(fd: int, data: bytes) -> int:
    return os.write(fd, data) and os.write(fd, data)


def _torn(fd: int, data: bytes) -> int:
    return os.write(fd, data[: len(data) // 2]) and len(data)


def _one_fewer(fd: int, size: int) -> Iterator[tuple[str, int]]:
    return iter(list(ENTRIES(fd, size))[1:])


def _one_twice(fd: int, size: int) -> Iterator[tuple[str, int]]:
    return iter([*(names := list(ENTRIES(fd, size))), *names[-1:]])


ENTRIES = listings.entries
CALLS: Mapping[str, tuple[type[Load], object, str, Callable[..., object]]] = {
    "a line lost": (Appends, appends, "append", lambda _, data: len(data)),
    "a line twice": (Appends, appends, "append", _twice),
    "a line torn": (Appends, appends, "append", _torn),
    "a name of a listing lost": (Listings, listings, "entries", _one_fewer),
    "a name of a listing twice": (Listings, listings, "entries", _one_twice),
    "a lock not held": (Holders, holders, "lock", lambda *_, **__: None),
    "a rename done twice": (Storm, storm, "rename", _fails_afterwards(storm.rename, errno.ENOENT)),
    "a rename not done": (Storm, storm, "rename", _not_in_mount(storm.rename)),
    "a mkdir done twice": (Storm, storm, "mkdir", _fails_afterwards(storm.mkdir, errno.EEXIST)),
    "a mkdir not done": (Storm, storm, "mkdir", _not_in_mount(storm.mkdir)),
    "an unlink done twice": (Storm, storm, "unlink", _fails_afterwards(storm.unlink, errno.ENOENT)),
    "an unlink not done": (Storm, storm, "unlink", _not_in_mount(storm.unlink)),
    "a setxattr done twice": (
        *(Xattrs, xattrs, "setxattr"),
        _fails_afterwards(xattrs.setxattr, errno.EEXIST),
    ),
    "a setxattr not done": (Xattrs, xattrs, "setxattr", _not_in_mount(xattrs.setxattr)),
}
"""Fault -> load, module and name of the function that makes the call, and the wrong function."""


@pytest.mark.parametrize("fault", CALLS)
def test_a_wrong_call_is_found(fault: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, module, name, wrong = CALLS[fault]
    monkeypatch.setattr(module, name, _sometimes(wrong, getattr(module, name)))

    assert run(kind, base) != []


def _change(pattern: str) -> Callable[[Path], None]:
    """Return a function that changes many bytes of the files with such a path."""

    def change(top: Path) -> None:
        while not (found := [path for path in top.rglob(pattern) if _has_data(path)]):
            time.sleep(0.01)
        for path in found:
            with contextlib.suppress(FileNotFoundError), path.open("rb+") as file:
                size = os.fstat(file.fileno()).st_size
                for offset in range(min(size // 2, 100), size, DISTANCE):
                    for byte in os.pread(file.fileno(), 1, offset):
                        os.pwrite(file.fileno(), bytes([byte ^ 1]), offset)

    return change


def _has_data(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size > 0
    except FileNotFoundError:
        return False


FILES: Mapping[type[Load], Callable[[Path], None]] = {
    Database: _change("delete.db"),
    Maps: _change("map0"),
    Mixed: _change("own0/*f*"),
    Repository: _change("part?/file*"),
    Server: _change("base/5/*"),
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=kind.__name__, marks=needs_postgres if kind is Server else [])
        for kind in FILES
    ],
)
def test_a_wrong_byte_is_found(kind: type[Load], base: Path) -> None:
    """A load may write a file anew before it ends, so try again."""
    assert any(run(kind, _below(base, number), FILES[kind]) for number in range(TRIES))


def _below(base: Path, number: int) -> Path:
    directory = base / str(number)
    directory.mkdir()
    directory.chmod(base.stat().st_mode)
    return directory


def test_a_wrong_byte_of_fio_is_found(base: Path) -> None:
    """A file may be written anew before it is verified, so change its bytes all the time."""
    over = threading.Event()

    def change() -> None:
        while not over.wait(0.001):
            for path in (base / "seen").glob("*"):
                _change(path.name)(base / "seen")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert run(Verified, base) != []
    finally:
        over.set()
        thread.join()


def test_an_early_end_of_a_task_is_noticed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appends, "append", _fails_afterwards(os.write, errno.EIO))

    found = run(Appends, base)

    assert found
    assert all("Input/output error" in line for line in found)

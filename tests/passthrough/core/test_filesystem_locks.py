"""Locks that are taken on the host's files."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.linux.filecalls import LAST_BYTE, Lock
from tests.support.tools.direct import descriptors_below, fails, number_of
from tests.support.tools.options import effective

READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
ALICE, BOB, CAROL = 0xA11CE, 0xB0B, 0xCA201
PIDS = {ALICE: 1001, BOB: 1002, CAROL: 1003}
PATIENCE_S = 20.0


class User:
    """A process that has the file open: the owner of its locks, on one volume."""

    def __init__(self, fs: PassthroughFs, owner: int, flags: int = os.O_RDWR) -> None:
        self.fs, self.owner = fs, owner
        self._numbers = iter(range(owner, owner + 1000))
        self.number = number_of(fs, b"file")
        self.handle = fs.open(self.number, flags)

    def lock(self, kind: int, start: int = 0, end: int = LAST_BYTE) -> bool:
        return self.fs.setlk(self.handle, self.owner, self._lock(kind, start, end))

    def denied(self, kind: int, start: int = 0, end: int = LAST_BYTE) -> None:
        fails(errno.EAGAIN, lambda: self.lock(kind, start, end))

    def seen(self, kind: int = WRITE, start: int = 0, end: int = LAST_BYTE) -> Lock | None:
        return self.fs.getlk(self.handle, self.owner, self._lock(kind, start, end))

    def wait(self, kind: int, start: int = 0, end: int = LAST_BYTE) -> "Waiting":
        number = next(self._numbers)
        lock = self._lock(kind, start, end)
        return Waiting(
            self.fs, number, lambda: self.fs.setlkw(self.handle, self.owner, lock, number)
        )

    def flock(self, kind: int) -> bool:
        return self.fs.flock(self.handle, kind)

    def wait_flock(self, kind: int) -> "Waiting":
        number = next(self._numbers)
        return Waiting(self.fs, number, lambda: self.fs.flock(self.handle, kind, number))

    def close(self) -> None:
        """Close the only descriptor."""
        self.fs.flush(self.handle, self.owner)
        self.fs.release(self.handle)

    def _lock(self, kind: int, start: int, end: int) -> Lock:
        return Lock(kind, start, end, PIDS[self.owner])


class Waiting(threading.Thread):
    """A lock that is waited for, in a thread of its own, which is inside the host's call."""

    def __init__(self, fs: PassthroughFs, number: int, call: Callable[[], bool]) -> None:
        super().__init__()
        self._fs, self._number, self._call = fs, number, call
        self.result: int | None = None
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except OSError as error:
            self.result = error.errno
        else:
            self.result = 0

    def blocked(self) -> None:
        """Wait until the thread sleeps in the host's call, fcntl(2) or flock(2)."""
        while self.is_alive():
            with open(f"/proc/self/task/{self.native_id}/syscall") as file:
                if file.read().split()[0] in {"72", "73", "25", "32"}:
                    return
        pytest.fail(f"it ended with {self.result} instead of waiting")

    def interrupt(self) -> None:
        self._fs.interrupt(self._number)

    def ended(self) -> int | None:
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self.result


def volume(source: Path) -> PassthroughFs:
    return PassthroughFs(effective(), os.open(source, os.O_PATH | os.O_DIRECTORY))


@pytest.fixture
def served(source: Path) -> Iterator[PassthroughFs]:
    (source / "file").write_bytes(bytes(100))
    fs = volume(source)
    yield fs
    assert len(fs.waits) == 0
    fs.close()
    assert descriptors_below(source) == set()


@pytest.fixture
def alice(served: PassthroughFs) -> User:
    return User(served, ALICE)


@pytest.fixture
def bob(served: PassthroughFs) -> User:
    return User(served, BOB)


def test_owners_exclude_one_another(alice: User, bob: User) -> None:
    alice.lock(WRITE, 0, 9)

    bob.denied(WRITE, 9, 20)
    bob.denied(READ, 0, 0)
    bob.lock(WRITE, 10, 20)
    alice.denied(READ, 20, 30)
    assert bob.seen(WRITE, 5, 30) == Lock(WRITE, 0, 9, PIDS[ALICE])
    assert alice.seen() == Lock(WRITE, 10, 20, PIDS[BOB])
    assert bob.seen(WRITE, 21) is None


def test_readers_share(alice: User, bob: User) -> None:
    alice.lock(READ)
    bob.lock(READ)

    alice.denied(WRITE, 3, 3)
    found = bob.seen(WRITE, 5, 5)
    assert found == Lock(READ, 0, LAST_BYTE, PIDS[ALICE])
    assert bob.seen(READ) is None


def test_an_owners_locks_replace_split_and_merge(alice: User, bob: User) -> None:
    alice.lock(WRITE, 0, 99)
    alice.lock(READ, 40, 49)
    alice.lock(UNLOCK, 60, 69)

    bob.lock(READ, 40, 49)
    bob.lock(WRITE, 60, 69)
    bob.denied(READ, 39, 39)
    bob.denied(READ, 50, 50)
    bob.denied(READ, 70, 99)
    assert bob.seen(WRITE, 45, 45) == Lock(READ, 40, 49, PIDS[ALICE])

    bob.lock(UNLOCK)
    alice.lock(WRITE, 0, 99)
    assert bob.seen(READ) == Lock(WRITE, 0, 99, PIDS[ALICE])


def test_an_owner_has_one_set_of_locks_through_all_its_descriptors(
    served: PassthroughFs, alice: User, bob: User
) -> None:
    again = User(served, ALICE)
    alice.lock(WRITE)

    again.lock(WRITE, 0, 50)
    assert again.seen() is None
    served.flush(again.handle, ALICE)  # any descriptor, and all locks go
    bob.lock(WRITE)


def test_other_owners_locks_stay_when_one_closes(alice: User, bob: User) -> None:
    alice.lock(WRITE, 0, 9)
    bob.lock(WRITE, 10, 19)
    alice.close()

    assert bob.seen() is None
    bob.lock(WRITE, 0, 9)


def test_what_was_locked_through_an_open_file_ends_with_it(
    served: PassthroughFs, alice: User, bob: User
) -> None:
    """An owner may be an open file description, for whose close no FLUSH names it."""
    alice.lock(WRITE, 0, 9)
    served.flush(alice.handle, CAROL)
    bob.denied(WRITE, 0, 9)

    served.release(alice.handle)

    bob.lock(WRITE, 0, 9)
    assert len(served.locks) == 1


def test_locks_follow_the_file_not_the_name(
    served: PassthroughFs, source: Path, alice: User, bob: User
) -> None:
    alice.lock(WRITE)
    (source / "file").unlink()
    (source / "file").write_bytes(b"another")

    bob.denied(WRITE)
    User(served, CAROL).lock(WRITE)


def test_a_lock_to_read_becomes_one_to_write_once_there_is_a_descriptor_for_it(
    served: PassthroughFs, alice: User, bob: User
) -> None:
    """Of a program that is only read, no descriptor may be open for writing, execve(2)."""
    reading = User(served, CAROL, os.O_RDONLY)
    reading.lock(READ, 0, 9)
    reading.lock(READ, 30, 39)
    fails(errno.EBADF, lambda: reading.lock(WRITE, 50, 59))
    bob.lock(WRITE, 20, 29)
    writing = User(served, CAROL, os.O_RDWR)
    writing.lock(WRITE, 0, 4)

    assert alice.seen(READ, 0, 15) == Lock(WRITE, 0, 4, PIDS[CAROL])
    assert alice.seen(WRITE, 5, 15) == Lock(READ, 5, 9, PIDS[CAROL])
    assert alice.seen(WRITE, 30, 39) == Lock(READ, 30, 39, PIDS[CAROL])
    assert len(served.locks) == 2


def test_a_file_that_is_locked_to_be_read_can_be_executed(
    served: PassthroughFs, source: Path
) -> None:
    (source / "file").write_bytes(Path("/bin/true").read_bytes())
    (source / "file").chmod(0o755)
    User(served, ALICE, os.O_RDONLY).lock(READ)

    assert subprocess.run([source / "file"], check=False).returncode == 0


def test_other_volumes_on_the_source_see_the_locks(source: Path, alice: User) -> None:
    other = volume(source)
    stranger = User(other, BOB)
    alice.lock(WRITE, 0, 9)

    stranger.denied(WRITE, 5, 5)
    assert stranger.seen() == Lock(WRITE, 0, 9, 0)
    stranger.lock(WRITE, 10, 19)
    alice.denied(READ, 10, 10)
    assert alice.seen() == Lock(WRITE, 10, 19, 0)
    waiting = alice.wait(READ, 10, 10)
    waiting.blocked()
    other.close()
    assert waiting.ended() == 0


PROCESS = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, int(sys.argv[2]))
except BlockingIOError:
    print("denied", flush=True)
else:
    print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def process(source: Path) -> Iterator[Callable[[int], "subprocess.Popen[str]"]]:
    """Starts a process of the host that locks ten bytes until its standard input ends."""
    started = []

    def start(offset: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-I", "-S", "-c", PROCESS, str(source / "file"), str(offset)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.communicate(timeout=PATIENCE_S)


def test_processes_of_the_host_see_the_locks_and_the_other_way_round(
    alice: User, process: Callable[[int], "subprocess.Popen[str]"]
) -> None:
    alice.lock(WRITE, 0, 9)
    refused, granted = process(5), process(20)
    for host, outcome in ((refused, "denied\n"), (granted, "locked\n")):
        assert host.stdout is not None
        assert host.stdout.readline() == outcome

    assert alice.seen() == Lock(WRITE, 20, 29, granted.pid)
    alice.denied(READ, 29, 29)
    waiting = alice.wait(WRITE, 29, 29)
    waiting.blocked()
    granted.communicate(timeout=PATIENCE_S)
    assert waiting.ended() == 0


def test_who_waits_gets_the_lock_when_it_is_free(alice: User, bob: User) -> None:
    alice.lock(WRITE)
    waiting = bob.wait(WRITE, 5, 5)
    waiting.blocked()
    alice.lock(UNLOCK, 0, 9)

    assert waiting.ended() == 0
    alice.denied(WRITE, 5, 5)
    assert alice.seen() == Lock(WRITE, 5, 5, PIDS[BOB])


def test_who_waits_can_be_interrupted(alice: User, bob: User) -> None:
    alice.lock(WRITE)
    waiting = bob.wait(WRITE)
    waiting.blocked()
    waiting.interrupt()

    assert waiting.ended() == errno.EINTR
    alice.lock(UNLOCK)
    assert alice.seen() is None


def test_an_interrupt_comes_at_any_time(alice: User, bob: User) -> None:
    """Also between the look at the lock and the wait for it."""
    alice.lock(WRITE)
    for _ in range(200):
        waiting = bob.wait(WRITE)
        waiting.interrupt()
        assert waiting.ended() == errno.EINTR


def test_many_wait(served: PassthroughFs, alice: User) -> None:
    alice.lock(WRITE)
    handle = served.open(alice.number, os.O_RDWR)

    def ask(owner: int) -> Waiting:
        lock = Lock(WRITE, 0, 0, owner)
        return Waiting(served, owner, lambda: served.setlkw(handle, owner, lock, owner))

    waiting = [ask(owner) for owner in range(10, 60)]
    for one in waiting:
        one.blocked()
    for one in waiting[::2]:
        one.interrupt()
    assert {one.ended() for one in waiting[::2]} == {errno.EINTR}
    alice.lock(UNLOCK)
    # Each holds it until it closes.
    for _ in waiting[1::2]:
        holder = None
        while holder is None or not holder.pid:  # granted, and not noted yet
            holder = alice.seen(WRITE, 0, 0)
        served.flush(handle, holder.pid)
    assert {one.ended() for one in waiting[1::2]} == {0}


def test_closing_the_file_drops_what_is_being_waited_for(alice: User, bob: User) -> None:
    """One thread closes while another one waits, fcntl(2): the lock is not kept in secret."""
    alice.lock(WRITE)
    waiting = bob.wait(WRITE)
    waiting.blocked()
    bob.fs.flush(bob.handle, BOB)
    alice.lock(UNLOCK)

    assert waiting.ended() == errno.EBADF
    alice.lock(WRITE)


def test_owners_that_would_wait_for_one_another_are_told(
    served: PassthroughFs, alice: User, bob: User
) -> None:
    carol = User(served, CAROL)
    for user, start in ((alice, 0), (bob, 10), (carol, 20)):
        user.lock(WRITE, start, start + 9)
    first = alice.wait(WRITE, 10, 10)
    first.blocked()
    second = bob.wait(WRITE, 20, 20)
    second.blocked()

    assert carol.wait(WRITE, 0, 0).ended() == errno.EDEADLK
    assert carol.wait(WRITE, 30, 39).ended() == 0
    carol.lock(UNLOCK)
    assert second.ended() == 0
    bob.lock(UNLOCK)
    assert first.ended() == 0


@pytest.mark.parametrize(
    ("kind", "start", "end"),
    [(7, 0, 1), (WRITE, 2, 1), (WRITE, -1, 1), (WRITE, 0, LAST_BYTE + 1)],
)
def test_a_lock_that_is_none_is_refused(alice: User, kind: int, start: int, end: int) -> None:
    fails(errno.EINVAL, lambda: alice.lock(kind, start, end))
    fails(errno.EINVAL, lambda: alice.seen(kind, start, end))
    assert alice.wait(kind, start, end).ended() == errno.EINVAL


def test_unlocking_what_was_never_locked_opens_nothing(served: PassthroughFs, alice: User) -> None:
    alice.lock(UNLOCK)
    served.flush(alice.handle, ALICE)

    assert len(served.locks) == 0


def test_flocks_belong_to_open_files(alice: User, bob: User, source: Path) -> None:
    alice.flock(READ)
    bob.flock(READ)
    fails(errno.EAGAIN, lambda: bob.flock(WRITE))
    bob.flock(UNLOCK)
    alice.flock(WRITE)
    with open(source / "file", "rb") as host, pytest.raises(BlockingIOError):
        fcntl.flock(host, fcntl.LOCK_SH | fcntl.LOCK_NB)
    waiting = bob.wait_flock(WRITE)
    waiting.blocked()
    waiting.interrupt()
    assert waiting.ended() == errno.EINTR
    waiting = bob.wait_flock(WRITE)
    waiting.blocked()

    alice.fs.release(alice.handle)

    assert waiting.ended() == 0
    fails(errno.EINVAL, lambda: bob.flock(9))


def test_an_flock_ends_with_its_open_file_also_where_the_kernel_keeps_that(
    served: PassthroughFs, alice: User, bob: User
) -> None:
    """As a file that others' reads and writes go to it may stay open in the kernel."""
    kept = os.dup(served.files[alice.handle].fd)
    alice.flock(WRITE)
    served.release(alice.handle, unlock=True)

    bob.flock(WRITE)
    os.close(kept)


def test_an_open_file_is_closed_whatever_becomes_of_its_locks(
    fs: PassthroughFs, source: Path
) -> None:
    """The kernel asks once: nobody would ever close it again."""
    (source / "f").touch()
    handle = fs.open(number_of(fs, b"f"), os.O_RDONLY)
    with patch.object(fs.locks, "flock", side_effect=OSError(errno.EIO, "no answer")):
        fails(errno.EIO, lambda: fs.release(handle, unlock=True))

    assert len(fs.files) == 0


def test_flocks_and_locks_of_bytes_do_not_see_one_another(alice: User, bob: User) -> None:
    alice.flock(WRITE)
    bob.lock(WRITE)


def test_a_lock_tells_whether_others_have_changed_the_file(
    source: Path, alice: User, bob: User
) -> None:
    """What the kernel has in its cache may be older than the lock."""
    assert alice.lock(WRITE)  # nobody knows what was before
    alice.fs.write(alice.handle, 0, b"mine")
    alice.lock(UNLOCK)
    assert not bob.lock(WRITE)
    bob.fs.write(bob.handle, 0, b"ours")
    bob.close()
    assert not alice.flock(WRITE)
    alice.flock(UNLOCK)

    with open(source / "file", "r+b", buffering=0) as host:
        host.write(b"theirs")

    assert alice.flock(READ)
    assert not alice.lock(READ)

"""locks.pyx and host_locks.pyx: GETLK, SETLK and SETLKW take locks that host processes see."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.tools.core_locks import (
    FLOCK,
    GETLK,
    PATIENCE_S,
    READ,
    SETLK,
    SETLKW,
    UNLOCK,
    WRITE,
    Found,
    Served,
    User,
)
from tests.support.tools.host_calls import LAST_BYTE

ALICE, BOB, CAROL = 1, 2, 3


def test_owners_exclude_one_another(alice: User, bob: User) -> None:
    alice.lock(WRITE, 0, 9)

    bob.denied(WRITE, 9, 20)
    bob.denied(READ, 0, 0)
    bob.lock(WRITE, 10, 20)
    alice.denied(READ, 20, 30)
    assert bob.seen(WRITE, 5, 30) == Found(WRITE, 0, 9, alice.pid)
    assert alice.seen() == Found(WRITE, 10, 20, bob.pid)
    assert bob.seen(WRITE, 21) is None


def test_readers_share(alice: User, bob: User) -> None:
    alice.lock(READ)
    bob.lock(READ)

    alice.denied(WRITE, 3, 3)
    assert bob.seen(WRITE, 5, 5) == Found(READ, 0, LAST_BYTE, alice.pid)
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
    assert bob.seen(WRITE, 45, 45) == Found(READ, 40, 49, alice.pid)

    bob.lock(UNLOCK)
    alice.lock(WRITE, 0, 99)
    assert bob.seen(READ) == Found(WRITE, 0, 99, alice.pid)


def test_an_owner_has_one_set_of_locks_through_all_its_descriptors(
    served: Served, alice: User, bob: User
) -> None:
    again = User(served, ALICE)
    alice.lock(WRITE)

    again.lock(WRITE, 0, 50)
    assert again.seen() is None
    again.flush()  # any descriptor, and all locks go
    bob.lock(WRITE)


def test_other_owners_locks_stay_when_one_closes(alice: User, bob: User) -> None:
    alice.lock(WRITE, 0, 9)
    bob.lock(WRITE, 10, 19)
    alice.close()

    assert bob.seen() is None
    bob.lock(WRITE, 0, 9)


def test_a_lock_made_through_an_open_file_ends_with_that_file(
    served: Served, alice: User, bob: User
) -> None:
    """An owner may be an open file description, for whose close no FLUSH names it."""
    alice.lock(WRITE, 0, 9)
    served.closed(alice.nodeid, CAROL)
    bob.denied(WRITE, 0, 9)

    alice.release()

    bob.lock(WRITE, 0, 9)
    assert served.descriptions() == 1


def test_an_owner_may_lock_through_many_open_files(served: Served, bob: User) -> None:
    files = [User(served, ALICE) for _ in range(20)]
    for start, user in enumerate(files):
        user.lock(WRITE, start * 2, start * 2)
    assert served.descriptions() == 1

    files[13].release()

    bob.lock(WRITE)


def test_locks_follow_the_file_and_not_the_name(
    served: Served, source: Path, alice: User, bob: User
) -> None:
    alice.lock(WRITE)
    (source / "file").unlink()
    (source / "file").write_bytes(b"another")

    bob.denied(WRITE)
    User(served, CAROL).lock(WRITE)


def test_a_lock_to_read_becomes_one_to_write_once_there_is_a_descriptor_for_it(
    served: Served, alice: User, bob: User
) -> None:
    """Of a program that is only read, no descriptor may be open for writing, execve(2)."""
    reading = User(served, CAROL, os.O_RDONLY)
    reading.lock(READ, 0, 9)
    reading.lock(READ, 30, 39)
    reading.denied(WRITE, 50, 59, why="EBADF")
    bob.lock(WRITE, 20, 29)
    writing = User(served, CAROL, os.O_RDWR)
    writing.lock(WRITE, 0, 4)

    assert alice.seen(READ, 0, 15) == Found(WRITE, 0, 4, writing.pid)
    assert alice.seen(WRITE, 5, 15) == Found(READ, 5, 9, writing.pid)
    assert alice.seen(WRITE, 30, 39) == Found(READ, 30, 39, writing.pid)
    assert served.descriptions() == 2


@pytest.mark.parametrize("first", [False, True])
def test_locks_on_a_new_description_end_with_each_open_file_that_made_them(
    served: Served, bob: User, *, first: bool
) -> None:
    reading, writing = User(served, ALICE, os.O_RDONLY), User(served, ALICE)
    reading.lock(READ, 0, 9)
    writing.lock(WRITE, 20, 29)
    (reading if first else writing).release()
    bob.lock(WRITE)


def test_a_file_that_is_locked_to_be_read_can_be_executed(served: Served, source: Path) -> None:
    (source / "file").write_bytes(Path("/bin/true").read_bytes())
    (source / "file").chmod(0o755)
    User(served, ALICE, os.O_RDONLY).lock(READ)

    assert subprocess.run([source / "file"], check=False).returncode == 0


def test_other_volumes_on_the_source_see_the_locks(source: Path, alice: User) -> None:
    other = Served(source / "file")
    stranger = User(other, BOB)
    alice.lock(WRITE, 0, 9)

    stranger.denied(WRITE, 5, 5)
    assert stranger.seen() == Found(WRITE, 0, 9, 0)
    stranger.lock(WRITE, 10, 19)
    alice.denied(READ, 10, 10)
    assert alice.seen() == Found(WRITE, 10, 19, 0)
    waiting = alice.wait(READ, 10, 10)
    waiting.blocked()
    other.end()
    assert waiting.ended() == "locked"


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
    """Start a process of the host that locks ten bytes until its standard input ends."""
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

    assert alice.seen() == Found(WRITE, 20, 29, granted.pid)
    alice.denied(READ, 29, 29)
    waiting = alice.wait(WRITE, 29, 29)
    waiting.blocked()
    granted.communicate(timeout=PATIENCE_S)
    assert waiting.ended() == "locked"


@pytest.mark.parametrize(
    ("kind", "start", "end"),
    [(7, 0, 1), (WRITE, 2, 1), (WRITE, (1 << 64) - 1, 1), (WRITE, 0, LAST_BYTE + 1)],
)
def test_a_lock_that_is_none_is_refused(alice: User, kind: int, start: int, end: int) -> None:
    alice.denied(kind, start, end, why="EINVAL")
    assert alice.ask(GETLK, (kind, start, end)) == -errno.EINVAL
    assert alice.wait(kind, start, end).ended() == "EINVAL"
    assert not alice.volume.used()


def test_an_unknown_open_file_is_refused(served: Served, alice: User) -> None:
    for opcode in (GETLK, SETLK, SETLKW):
        for flags in (0, FLOCK):
            asked = (opcode, alice.nodeid, alice.fh + 1, ALICE, WRITE, 0, 1, alice.pid)
            assert served.ask(*asked, flags, 8) == -errno.EBADF


def test_unlocking_bytes_that_were_never_locked_opens_nothing(served: Served, alice: User) -> None:
    alice.lock(UNLOCK)
    alice.flush()

    assert served.descriptions() == 0
    assert not served.used()


def test_the_first_lock_of_bytes_is_noted(served: Served, alice: User) -> None:
    alice.flock(WRITE)
    assert not served.used()
    alice.lock(READ)
    assert served.used()


def test_flocks_belong_to_open_files(alice: User, bob: User, source: Path) -> None:
    assert alice.flock(READ) == bob.flock(READ) == "locked"
    assert bob.flock(WRITE) == "EAGAIN"
    assert bob.flock(UNLOCK) == "locked"
    assert alice.flock(WRITE) == "locked"
    with open(source / "file", "rb") as host, pytest.raises(BlockingIOError):
        fcntl.flock(host, fcntl.LOCK_SH | fcntl.LOCK_NB)
    waiting = bob.wait_flock(WRITE)
    waiting.blocked()
    waiting.interrupt()
    assert waiting.ended() == "EINTR"
    waiting = bob.wait_flock(WRITE)
    waiting.blocked()

    alice.release()

    assert waiting.ended() == "locked"
    assert bob.flock(9) == "EINVAL"
    assert bob.wait_flock(UNLOCK).ended() == "locked"
    with open(source / "file", "rb") as host:
        fcntl.flock(host, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_flock_ends_with_its_open_file_also_where_the_kernel_keeps_that(
    alice: User, bob: User
) -> None:
    """The file may stay open in the kernel, since others read and write through it."""
    kept = os.dup(alice.fd)
    alice.flock(WRITE)
    alice.release(unlock=True)

    assert bob.flock(WRITE) == "locked"
    os.close(kept)


def test_flocks_and_locks_of_bytes_do_not_see_one_another(alice: User, bob: User) -> None:
    assert alice.flock(WRITE) == "locked"
    bob.lock(WRITE)


def test_many_ranges_are_held_and_given_back(alice: User, bob: User) -> None:
    for start in range(0, 400, 4):
        alice.lock(WRITE if start % 8 else READ, start, start + 1)
    assert len(alice.held()) == 100
    bob.denied(READ, 396, 396)
    assert bob.seen(WRITE, 397, 500) == Found(WRITE, 396, 397, alice.pid)
    alice.lock(UNLOCK, 2, 396)
    assert alice.held() == [(READ, 0, 1), (WRITE, 397, 397)]
    alice.flush()
    bob.lock(WRITE)


def test_locks_of_many_owners_and_files_stay_apart(served: Served, source: Path) -> None:
    users = []
    for number in range(300):
        path = source / f"file{number % 30}"
        path.touch()
        users.append(User(served, number // 30 + 1, path=path))
    for user in users:
        user.lock(WRITE, user.owner * 10, user.owner * 10 + 9)
    assert served.descriptions() == 300
    for user in users:
        assert user.held() == [(WRITE, user.owner * 10, user.owner * 10 + 9)]
        user.denied(WRITE)
    for user in users[::2]:
        user.flush()
    assert served.descriptions() == 150
    for user in users:
        assert len(user.held()) == users.index(user) % 2


def test_a_volume_drops_its_locks_at_its_end(source: Path, alice: User) -> None:
    other = Served(source / "file")
    stranger = User(other, BOB)
    stranger.lock(WRITE)
    alice.denied(WRITE)
    other.close()
    alice.lock(WRITE)
    stranger.abandon()
    other.end()

"""Descriptors that a dead worker has lost: their locks, and a close(2) that hangs."""

import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

from passthrough.options.choices import SessionKind
from passthrough.session.abi import Init, Opcode
from tests.support.fakes.kernel import message
from tests.support.tools import wire
from tests.support.tools.callers import ROOT, USER
from tests.support.tools.mounted import mounted
from tests.support.tools.options import effective
from tests.support.tools.processes import wait_until
from tests.support.tools.successors import Successors, clone

CONFIG = effective(session=SessionKind.KERNEL)
FEATURES = int(Init.FLOCK_LOCKS | Init.POSIX_LOCKS)
WHOLE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock, fcntl(2)
LINGER_S = 1000
LIMIT_S = 20.0


class _Watched(Successors):
    """Successors that end when they are asked to, and try to lock a file before they serve."""

    locked: int | None = None

    def __enter__(self) -> Self:
        self.asked, self.told = os.pipe(), os.pipe()
        self.core.note_descriptors()
        return super().__enter__()

    def start(self) -> None:
        self._pid = clone()
        if self._pid == 0:
            try:
                self.take_over()
                self.core.start()
                self.core.watch(self.asked[0], -1)
                os.write(self.told[1], b"ended")
            finally:
                os._exit(1)

    def take_over(self) -> None:
        super().take_over()
        if self.locked is not None:
            try:
                fcntl.fcntl(self.locked, fcntl.F_OFD_SETLK, WHOLE)
                os.write(self.told[1], b"locked")
            except BlockingIOError:
                os.write(self.told[1], b"refused")

    def hear(self) -> bytes:
        """Return what the worker has told, or nothing if it has not in time."""
        ready, _, _ = select.select([self.told[0]], [], [], LIMIT_S)
        return os.read(self.told[0], 100) if ready else b""


@pytest.mark.parametrize(("locks", "told"), [(True, b"locked"), (False, b"refused")])
def test_locks_of_a_lost_descriptor_end_before_the_next_worker_serves(
    source: Path, locks: bool, told: bytes
) -> None:
    """Of an owner's former description, for example, which is in the way of the owner's new one.

    The worker of a volume without locks makes no call for that, which might hang: so it finds a
    lock that is not the volume's.
    """
    for name in "file", "name":
        (source / name).touch()

    def run() -> None:
        with _Watched(source, CONFIG, FEATURES) as volume:
            nodeid, fh = volume.open()
            if locks:
                body = wire.LK_IN.pack(fh, 1, 0, 9, fcntl.F_WRLCK, 1, 0)
                assert volume.ask(message(Opcode.SETLK, body, nodeid, 10)).error == 0
            lost, volume.locked = (os.open(source / "name", os.O_RDWR) for _ in range(2))
            fcntl.fcntl(lost, fcntl.F_OFD_SETLK, WHOLE)
            volume.kill()
            volume.start()
            assert volume.hear() == told

    ROOT.run(run)


def lingering_socket() -> int:
    """Return a descriptor for which close(2) takes 1000 s; others that it needs are open, too."""
    lingering, listening = (socket.socket() for _ in range(2))
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    lingering.connect(listening.getsockname())
    other, _ = listening.accept()
    linger = struct.pack("ii", 1, LINGER_S)
    lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    lingering.setblocking(False)
    with suppress(BlockingIOError):
        while lingering.send(bytes(1 << 16)):
            pass
    assert lingering.fileno() < listening.fileno() < other.fileno()  # closed in this order
    listening.detach()
    other.detach()
    return lingering.detach()


def test_a_close_that_hangs_does_not_keep_the_worker_from_its_work(source: Path) -> None:
    def run() -> None:
        with _Watched(source, CONFIG, FEATURES) as volume:
            volume.ask(message(Opcode.STATFS, unique=2))
            volume.kill()
            lost = lingering_socket()
            volume.start()
            volume.ask(message(Opcode.STATFS, unique=4))
            while os.path.exists(f"/proc/self/fd/{lost}"):
                os.sched_yield()
            os.write(volume.asked[1], b"!")
            assert volume.hear() == b"ended"

    ROOT.run(run)


@contextmanager
def refusing(target: Path) -> Iterator[None]:
    """Mount a file system of another user on *target*: statx(2) fails, without a request."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={USER.uid},group_id={USER.gid}"
    words = ["mount", "-i", "-t", "fuse", "-o", options, "none", str(target)]
    subprocess.run(words, pass_fds=[device], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True)
        os.close(device)


def test_a_lost_descriptor_without_attributes_is_closed(source: Path, mountpoint: Path) -> None:
    """As with a server that answers with an error."""

    def run() -> None:
        with refusing(mountpoint), _Watched(source, CONFIG, FEATURES) as volume:
            volume.ask(message(Opcode.STATFS, unique=2))
            lost = os.open(mountpoint, os.O_PATH)
            with pytest.raises(PermissionError):
                os.fstat(lost)
            volume.kill()
            volume.start()
            volume.ask(message(Opcode.STATFS, unique=4))
            wait_until(lambda: not os.path.lexists(f"/proc/self/fd/{lost}"))

    ROOT.run(run)


def test_an_unlock_that_hangs_does_not_keep_the_worker_from_its_work(
    source: Path, base: Path
) -> None:
    """The lost descriptor is of a file on another volume, whose worker is stopped."""
    (source / "file").touch()
    with mounted(base, {"session": "kernel", "locks": "host"}) as other:
        (other.source / "file").touch()

        def run() -> None:
            with _Watched(source, CONFIG, FEATURES) as volume:
                nodeid, fh = volume.open()
                body = wire.LK_IN.pack(fh, 1, 0, 9, fcntl.F_WRLCK, 1, 0)
                assert volume.ask(message(Opcode.SETLK, body, nodeid, 10)).error == 0
                lost = os.open(other.mountpoint / "file", os.O_RDWR)
                volume.kill()
                os.kill(other.worker_pid, signal.SIGSTOP)
                try:
                    volume.start()
                    assert volume.ask(message(Opcode.STATFS, unique=12)).error == 0
                finally:
                    os.kill(other.worker_pid, signal.SIGCONT)
                wait_until(lambda: not os.path.lexists(f"/proc/self/fd/{lost}"))

        ROOT.run(run)

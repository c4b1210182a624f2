"""A volume whose workers are cloned from this process, one after the other, as by a guard.

A socket stands in for /dev/fuse. This process keeps its core as it was before the first worker.
"""

import ctypes
import fcntl
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from passthrough.core.face import Core
from passthrough.options.effective import Effective
from passthrough.session.abi import Opcode
from passthrough.session.rare import Rare
from tests.passthrough.core.probe_journal import memory
from tests.support.fakes.kernel import Reply, entry, message, text
from tests.support.tools import wire
from tests.support.tools.processes import wait_until

_CLONE: Final = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
_CLONE_FILES: Final = 0x400
_READ: Final = {"x86_64": "0", "aarch64": "63"}[os.uname().machine]
READERS: Final = 2  # service.pyx, on more than one processor
_LARGEST: Final = 1 << 21
_REQUEST_AT: Final = 4016
_LIMIT_S: Final = 20.0
_FLOCK: Final = 1  # FUSE_LK_FLOCK
_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h
_BUFFER_SIZE: Final = 4 << 20
# With the interpreter's lock held, which the child then has, too.
_call = ctypes.PyDLL(None, use_errno=True).syscall
_call.argtypes = [ctypes.c_long] * 6


def flock(fh: int, kind: int = fcntl.F_RDLCK, owner: int = 1) -> bytes:
    """Return the body of a request for a lock of the whole file, flock(2)."""
    return wire.LK_IN.pack(fh, owner, 0, 0, kind, 1, _FLOCK)


def waits(path: Path) -> int:
    """Return how many threads wait for a lock of a file, proc_locks(5)."""
    with open("/proc/locks") as lines:
        waiting = [line.split() for line in lines if "->" in line]
    return sum(fields[6].endswith(f":{path.stat().st_ino}") for fields in waiting)


def clone() -> int:
    """Make a child that shares the table of descriptors: clone(2)."""
    pid: int = _call(_CLONE, _CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0)
    assert pid >= 0
    return pid


class Successors:
    """The workers of a volume; a context manager, which ends the last one."""

    def __init__(self, source: Path, config: Effective, features: int = 0) -> None:
        self.python = Rare(config)
        self.core = Core(config, os.open(source, os.O_PATH | os.O_DIRECTORY), self.python)
        self.core.agree(features, 45, False)
        self.kernel, self._device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, self._device):
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_SIZE)
        self.kernel.settimeout(_LIMIT_S)
        self.core.use_device(self._device.fileno())
        self.core.note_descriptors()
        self._pid = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.kernel.close()
        self._device.close()

    def start(self) -> None:
        """Make a worker, which takes over."""
        self._pid = clone()
        if self._pid == 0:
            try:
                self.take_over()
                self.core.start()
                self.core.watch(-1, -1)
            finally:
                os._exit(1)

    def take_over(self) -> None:
        """Take over, in a fresh worker."""
        self.core.take_over()

    def kill(self) -> None:
        """Kill the worker, and wait until it is dead."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def ask(self, request: bytes) -> Reply:
        """Send a request, and wait for its reply."""
        self.kernel.send(request)
        return self.reply_to(wire.IN_HEADER.unpack_from(request)[2])

    def open(self, unique: int = 2) -> tuple[int, int]:
        """Look `file` up and open it, by two requests; return its nodeid and fh."""
        looked_up = self.ask(message(Opcode.LOOKUP, text(b"file"), unique=unique))
        nodeid = entry(looked_up.body)["nodeid"]
        body = wire.OPEN_IN.pack(os.O_RDWR, 0)
        reply = self.ask(message(Opcode.OPEN, body, nodeid, unique + 2))
        return nodeid, wire.OPEN_OUT.unpack(reply.body)[0]

    def reply_to(self, unique: int) -> Reply:
        """Wait for the reply to a request; one that comes a second time is dropped."""
        while (reply := self.reply()).unique != unique:
            pass
        return reply

    def reply(self) -> Reply:
        """Wait for a reply; notifications are dropped."""
        unique = 0
        while not unique:
            answer = self.kernel.recv(_LARGEST)
            _, error, unique = wire.OUT_HEADER.unpack_from(answer)
        return Reply(unique, -error, answer[wire.OUT_HEADER.size :])

    # The memory of requests

    def places(self) -> dict[int, int]:
        """Return where each request in hand lies, by its number."""
        fd, starts, _ = memory(self.core)
        found = {}
        for start in starts:
            done = int.from_bytes(os.pread(fd, 8, start), "little")
            unique = int.from_bytes(os.pread(fd, 8, start + _REQUEST_AT + 8), "little")
            if unique != done:
                found[unique] = start
        return found

    def await_in_hand(self, unique: int) -> int:
        """Wait until the worker has read a request; return the place of it."""
        while unique not in (found := self.places()):
            os.sched_yield()
        return found[unique]

    def write(self, at: int, number: int, size: int) -> None:
        """Change the memory."""
        os.pwrite(memory(self.core)[0], number.to_bytes(size, "little"), at)


class Retiring(Successors):
    """The first worker serves no further request once `retire` is called."""

    def start(self) -> None:
        """Make the worker that retires."""
        self._asked, self._stopped = os.pipe(), os.pipe()
        self.core.note_descriptors()
        self._pid = clone()
        if self._pid == 0:
            try:
                self.take_over()
                self.core.start()
                self.core.watch(self._asked[0], -1)
                self.core.stop()
                os.write(self._stopped[1], b"!")
                signal.pause()
            finally:
                os._exit(1)

    def threads(self) -> list[int]:
        """Return the threads of the worker that serve."""
        return sorted({*map(int, os.listdir(f"/proc/{self._pid}/task"))} - {self._pid})

    def readers_first(self) -> list[int]:
        """Return the threads that serve, those that read first, once two of them read.

        A thread that was added for a moment may be parked, and takes no request.
        """
        wait_until(lambda: len(self._reading()) >= READERS)
        reading = self._reading()
        return [*reading, *(thread for thread in self.threads() if thread not in reading)]

    def _reading(self) -> list[int]:
        found = []
        for thread in self.threads():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                call = Path(f"/proc/{self._pid}/task/{thread}/syscall").read_text().split()[0]
                if call == _READ:
                    found.append(thread)
        return found

    def retire(self) -> None:
        """Have the worker serve no further request, and wait until it has stopped."""
        os.write(self._asked[1], b"!")
        assert os.read(self._stopped[0], 1) == b"!"

    def send(self, request: bytes) -> None:
        """Send a request, and wait for nothing."""
        self.kernel.send(request)

    def start_successor(self) -> None:
        """Make a worker, which takes over."""
        super().start()

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        for fd in (*self._asked, *self._stopped):
            os.close(fd)

"""Processes that serve one core: one dies at a step, and the next goes on. Requests are bytes.

The first process makes the core, and clones one process after the other, each when the one before
has been killed. A socket stands for /dev/fuse. The build of the core must be of the kind `steps`.
"""

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from passthrough.core.clone import clone
from passthrough.core.counters import count_in
from passthrough.options.choices import InodeFileHandles, SessionKind, Squash
from passthrough.options.effective import Effective
from passthrough.session.abi import Opcode
from passthrough.session.kernel import Served
from passthrough.session.rare import MAX_WRITE
from passthrough.worker import control, counters
from tests.passthrough.core.probe_steps import DYING, STEPS, TWICE, WORD_AT
from tests.support.tools import wire
from tests.support.tools.bodies import WITHOUT_ANSWER
from tests.support.tools.counting import numbers
from tests.support.tools.options import effective
from tests.support.tools.processes import children, descriptors, lives

PLAIN = effective(session=SessionKind.KERNEL, posix_acl=False)
SQUASHED = effective(
    session=SessionKind.KERNEL, squash=Squash.ALL, anon_uid=41_003, anon_gid=41_004
)
BY_HANDLE = effective(
    session=SessionKind.KERNEL, posix_acl=False, inode_file_handles=InodeFileHandles.MANDATORY
)
OPTIONS: Mapping[str, Effective] = {
    "plain": PLAIN,
    "squashed": SQUASHED,
    "by handle": BY_HANDLE,
}
LIMIT_S = 30.0
_BUFFER_SIZE = 4 * MAX_WRITE
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
_MEMORY = "/memfd:passfs-tables (deleted)"


# In the processes of the core.


def main(source: str, device_fd: int, options: str) -> int:
    """Serve *source* on a socket until its other end is closed; print what is left then."""
    memory_fd = control.make()
    memory = mmap.mmap(memory_fd, counters.END)
    count_in(memory, counters.AT)
    served = Served(OPTIONS[options], os.open(source, os.O_PATH | os.O_DIRECTORY))
    served.core.use_device(device_fd)
    while served.rare.agreed is None:
        if not served.core.serve_one():
            return 1
    served.core.note_descriptors()
    deaths = 0
    while True:
        pid = clone()
        if not pid:
            _serve(served, first=not deaths)
            left = {**_left(served), "deaths": deaths}
            sys.stdout.write(json.dumps({"left": left, "requests": numbers(memory_fd)}))
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            return os.waitstatus_to_exitcode(status)
        deaths += 1


def _serve(served: Served, *, first: bool) -> None:
    core = served.core
    if not first:
        core.take_over()
    wakeup_fd, _ = os.pipe2(os.O_CLOEXEC)
    core.start()
    core.watch(wakeup_fd, -1)
    core.stop()


def _left(served: Served) -> dict[str, int]:
    core = served.core
    return {"inodes": core.inodes, "files": core.files, "directories": core.directories}


# In the test's process.


class Word:
    """The word by which processes of a build of the kind `steps` die, of those that *pid* is of.

    A context manager.
    """

    def __init__(self, pid: int) -> None:
        found = next(fd for fd, target in descriptors(pid).items() if target == _MEMORY)
        with Path(f"/proc/{pid}/fd/{found}").open("r+b") as memory:
            self._memory = mmap.mmap(memory.fileno(), mmap.PAGESIZE)

    def arm(self, step: str, *, passes: int = 0, twice: bool = False) -> None:
        """Have the process die at a step, when it has passed that so many times."""
        self._set(STEPS[step] | (TWICE if twice else 0) | passes << 16)

    def is_armed(self) -> bool:
        """Return whether a process is to die at a step, until its successor takes over."""
        return self._asked() != 0

    def disarm(self) -> int:
        """Have no process die at a step; return how many more were to.

        If one is dying, wait for its successor.
        """
        deadline = time.monotonic() + LIMIT_S
        while (asked := self._asked()) & DYING and time.monotonic() < deadline:
            time.sleep(0.001)
        self._set(0)
        return 2 if asked & TWICE else int(asked != 0)

    def _asked(self) -> int:
        return int.from_bytes(self._memory[WORD_AT : WORD_AT + 4], sys.byteorder)

    def _set(self, word: int) -> None:
        self._memory[WORD_AT : WORD_AT + 4] = word.to_bytes(4, sys.byteorder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.close()


class Standby:
    """A session of requests as bytes, served by processes of the build in *build*."""

    def __init__(self, build: Path, source: Path, options: str) -> None:
        self._kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._kernel, device):
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_SIZE)
        self._kernel.settimeout(LIMIT_S)
        words = ["tests.support.tools.core_standby", str(source), str(device.fileno()), options]
        self._process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=build,
            env=os.environ | {"PYTHONPATH": str(build)},
            pass_fds=[device.fileno()],
            stdout=subprocess.PIPE,
        )
        device.close()
        self.left: dict[str, int] = {}
        """The inodes, files and directories of the core at its end, and the deaths."""
        self.requests: dict[str, int] = {}
        """The requests that it had counted, by operation."""

    def send(self, request: bytes) -> list[bytes]:
        """As of every ByteSession."""
        self._kernel.send(request)
        _, opcode, unique, *_ = wire.IN_HEADER.unpack_from(request)
        messages: list[bytes] = []
        if Opcode(opcode).name in WITHOUT_ANSWER:
            return messages
        while not messages or wire.OUT_HEADER.unpack_from(messages[-1])[2] != unique:
            message = self._kernel.recv(_BUFFER_SIZE)
            # A reply may come twice. The kernel does not take the second one.
            if wire.OUT_HEADER.unpack_from(message)[2] in (0, unique):
                messages.append(message)
        return messages

    def word(self) -> Word:
        """Return the word by which the processes die."""
        return Word(self._process.pid)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have no successor follow the process that serves now, until the end of the block."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def serves(self) -> bool:
        """Return whether a process serves that has not ended."""
        return any(map(lives, children(self._process.pid)))

    def descriptors(self) -> int:
        """Return the number of descriptors that the processes have."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def removed(self, source: Path) -> int:
        """Return how many descriptors lead to files of *source* that have no name."""
        targets = descriptors(self._process.pid).values()
        return sum(
            target.startswith(f"{source}/") and target.endswith(" (deleted)") for target in targets
        )

    def close(self) -> None:
        """End the processes.

        Close the socket after them: a close with a message unread, as a reply that came twice,
        would break the connection of the process that serves (ECONNRESET).
        """
        self._kernel.shutdown(socket.SHUT_WR)
        try:
            out, _ = self._process.communicate(timeout=LIMIT_S)
        finally:
            self._process.kill()
            self._kernel.close()
        self.left, self.requests = json.loads(out).values()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))

"""A worker that leaves wrong values in its shared memory, and a successor that finds them.

As a program it tries random values: `python -m tests.support.tools.damaged SOURCE SEED TRIALS`.
"""

import errno
import fcntl
import os
import random
import resource
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from passthrough.core.face import Core
from passthrough.options.choices import CachePolicy, InodeFileHandles, SessionKind
from passthrough.options.effective import Effective
from passthrough.session.abi import Init, Opcode
from passthrough.session.rare import Rare
from tests.passthrough.core.probe_damage import FIRST_OWN, JOURNAL, MARK, values_of
from tests.passthrough.core.probe_journal import FIRST_AT, PLACE, SIZES
from tests.support.fakes.kernel import entry, message, text
from tests.support.tools import abi, wire
from tests.support.tools.options import effective

PLAIN: Final = effective(session=SessionKind.KERNEL)
UNOPENED: Final = effective(
    session=SessionKind.KERNEL,
    inode_file_handles=InodeFileHandles.MANDATORY,
    cache=CachePolicy.ALWAYS,
    no_open=True,
    no_opendir=True,
)
IN_HAND: Final = 100
OWNER: Final = 7
_FEATURES: Final = int(
    Init.DO_READDIRPLUS | Init.POSIX_LOCKS | Init.FLOCK_LOCKS | Init.HANDLE_KILLPRIV_V2
)
_FILES: Final = 3
_TABLES, _REQUESTS, _, _STREAMS = range(4)
_LIMIT_S: Final = 20
_LONGEST: Final = 1 << 21
_PLACES: Final = 3
_MANY: Final = 1 << 12  # inodes
_MOST: Final = 1 << 25  # inodes for which there is room
_RESUMED_S: Final = 0.2
_DESCRIPTORS: Final = 1024  # a limit
_READING: Final = (
    (Opcode.GETATTR, wire.GETATTR_IN.pack(0, 0)),
    (Opcode.GETXATTR, wire.GETXATTR_IN.pack(100) + text(b"user.a")),
    (Opcode.READ, wire.READ_IN.pack(0, 0, 100, 0, 0, 0)),
    (Opcode.READDIRPLUS, wire.READ_IN.pack(0, 0, 4096, 0, 0, 0)),
)
_EDGES: Final = (0, 1, 2, 3, 255, 1 << 12, 1 << 16, 1 << 20, 1 << 25, (1 << 31) - 1, 1 << 31)


class _Told(Rare):
    damage = ""

    def report(self, _kind: int, _number: int, name: bytes) -> None:
        self.damage = os.fsdecode(name)


class Left:
    """The core of a worker that serves no more, and what a successor makes of its memory.

    Nothing is closed: to be made in a process of its own.
    """

    def __init__(self, source: Path, config: Effective) -> None:
        """Look all files up, open them, and lock one; leave one request in hand."""
        self._config = config
        self._python = _Told(config)
        self._kernel, self._device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.core = self._made(os.open(source, os.O_PATH | os.O_DIRECTORY))
        self._numbers = iter(range(200, 1 << 20, 2))
        self._later: list[bytes] = []
        for name in range(_FILES):
            (source / str(name)).write_bytes(b"content")
            self.nodeid = self._use(str(name).encode())
        self._list()
        self._leave_a_request()
        self.values: Final = values_of(self.core, self.nodeid)
        length_at = FIRST_AT + _PLACES * PLACE + SIZES[1]
        self.values["length of a request"] = self.core.memory[_REQUESTS], length_at, 4
        self._pages: Final = {fd: dict(_data(fd)) for fd in self.core.memory}

    def _made(self, source_fd: int, memory: Sequence[int] | None = None) -> Core:
        core = Core(self._config, source_fd, self._python, memory)
        core.agree(_FEATURES, 45, False)
        core.use_device(self._device.fileno())
        return core

    def _ask(self, opcode: Opcode, body: bytes, nodeid: int = abi.ROOT_ID) -> bytes:
        answer = self.core.answer(message(opcode, body, nodeid, next(self._numbers)))
        assert answer is not None
        assert wire.OUT_HEADER.unpack_from(answer)[1] == 0, opcode
        return answer[wire.OUT_HEADER.size :]

    def _use(self, name: bytes) -> int:
        """Look a file up, and have it used again later; return its nodeid."""
        nodeid: int = entry(self._ask(Opcode.LOOKUP, text(name)))["nodeid"]
        self._again(Opcode.LOOKUP, text(name))
        for opcode, body in _READING:
            self._again(opcode, body, nodeid)
        if self._config.no_open:
            self._ask(Opcode.READ, wire.READ_IN.pack(0, 0, 10, 0, 0, 0), nodeid)
        else:
            self._open(nodeid)
        self._again(Opcode.FORGET, wire.FORGET_IN.pack(1), nodeid)
        return nodeid

    def _open(self, nodeid: int) -> None:
        """Open a file and lock it, and do so again later."""
        opened = self._ask(Opcode.OPEN, wire.OPEN_IN.pack(os.O_RDWR, 0), nodeid)
        fh = wire.OPEN_OUT.unpack(opened)[0]
        lock = wire.LK_IN.pack(fh, OWNER, 10, 19, fcntl.F_WRLCK, 1, 0)
        self._ask(Opcode.SETLK, lock, nodeid)
        self._again(Opcode.READ, wire.READ_IN.pack(fh, 0, 100, 0, 0, 0), nodeid)
        for owner, kind in (OWNER, fcntl.F_RDLCK), (OWNER + 1, fcntl.F_WRLCK):
            for opcode in Opcode.GETLK, Opcode.SETLK:
                self._again(opcode, wire.LK_IN.pack(fh, owner, 12, 15, kind, 1, 0), nodeid)
        self._again(Opcode.FLUSH, wire.FLUSH_IN.pack(fh, OWNER), nodeid)
        self._again(Opcode.RELEASE, wire.RELEASE_IN.pack(fh, 0, 0, 0), nodeid)
        self._again(Opcode.OPEN, wire.OPEN_IN.pack(0, 0), nodeid)

    def _list(self) -> None:
        """Open the directory, as far as the options allow, with a mark of its stream."""
        fh = 0
        if self._config.no_opendir:
            self._ask(Opcode.READDIRPLUS, wire.READ_IN.pack(0, 0, 4096, 0, 0, 0))
        else:
            opened = self._ask(Opcode.OPENDIR, wire.OPEN_IN.pack(0, 0))
            fh = wire.OPEN_OUT.unpack(opened)[0]
        self.write(_STREAMS, MARK["marks"] + MARK["own"], struct.pack("=QQ", FIRST_OWN, fh or 1))
        self.write(_STREAMS, MARK["marks"] + MARK["passed"], struct.pack("=I", 4))
        self.write(_STREAMS, MARK["marks"] + MARK["names"], text(b"0", b"1"))
        for opcode in Opcode.READDIR, Opcode.READDIRPLUS:
            for offset in FIRST_OWN, 0:
                self._again(opcode, wire.READ_IN.pack(fh, offset, 4096, 0, 0, 0))

    def _leave_a_request(self) -> None:
        """Leave a reply, a request that has counted a lookup, and one that has crashed workers."""
        self.write(_REQUESTS, 0, struct.pack("=i", _PLACES + 1))
        rows = wire.BATCH_FORGET_IN.pack(1) + wire.FORGET_ONE.pack(self.nodeid, 1)
        for place, stage, guilty, opcode, body in (
            (1, 2, 0, Opcode.LOOKUP, text(b"0")),
            (2, 0, 0, Opcode.LOOKUP, text(b"0")),
            (_PLACES, 0, 2, Opcode.BATCH_FORGET, rows),
        ):
            number = IN_HAND + 2 * place
            journal = FIRST_AT + place * PLACE
            request = message(opcode, body, abi.ROOT_ID, number)
            self.write(_REQUESTS, journal + SIZES[1], request)
            self.write(_REQUESTS, journal + JOURNAL["unique"], struct.pack("=Q", number))
            self.write(
                _REQUESTS, journal + JOURNAL["stage"], struct.pack("=III", stage, 16, guilty)
            )
            if place == 2:
                self.write(_REQUESTS, journal + JOURNAL["count"], struct.pack("=II", 1, 1))
                self.write(_REQUESTS, journal + JOURNAL["log"], struct.pack("=Q", self.nodeid))

    def _again(self, opcode: Opcode, body: bytes, nodeid: int = abi.ROOT_ID) -> None:
        self._later.append(message(opcode, body, nodeid, next(self._numbers)))

    def write(self, which: int, at: int, data: bytes) -> None:
        """Change one of the core's four memories."""
        os.pwrite(self.core.memory[which], data, at)

    def poison(self, wrong: Mapping[str, int]) -> None:
        """Write *wrong* values, by name, in place of those that the worker has left."""
        for name, number in wrong.items():
            fd, at, size = self.values[name]
            os.pwrite(fd, number.to_bytes(size, sys.byteorder), at)

    def spoil(self, drawn: random.Random) -> str:
        """Change some random words; return what has been done."""
        done = []
        for _ in range(drawn.choice((1, 1, 2, 8))):
            fd, at, size = self._random_place(drawn)
            number = drawn.choice((drawn.choice(_EDGES), drawn.getrandbits(32), -1))
            if drawn.random() < 0.3:
                now = int.from_bytes(os.pread(fd, size, at), sys.byteorder)
                number = now + drawn.choice((-1, 1, 1 << drawn.randrange(8 * size)))
            data = (number % (1 << 8 * size)).to_bytes(size, sys.byteorder)
            os.pwrite(fd, data, at)
            done.append(f"{fd}:{at}={data.hex()}")
        fd, at, size = self.values["end of inodes"]
        end = int.from_bytes(os.pread(fd, size, at), sys.byteorder)
        if _MANY < end <= _MOST:  # not wrong: the successor would look at all, which takes 2 GiB
            self.poison({"end of inodes": _MANY})
        return " ".join(done)

    def _random_place(self, drawn: random.Random) -> tuple[int, int, int]:
        """Return a named value, or a word near one that is not 0."""
        if drawn.random() < 0.2:
            return self.values[drawn.choice(sorted(self.values))]
        fd, pages = drawn.choice([each for each in self._pages.items() if each[1]])
        at = drawn.choice(sorted(pages))
        page = pages[at]
        used = [word for word in range(0, len(page), 4) if any(page[word : word + 4])]
        word = drawn.choice(used) + drawn.choice((0, 0, 0, -4, 4))
        return fd, at + min(max(word, 0), len(page) - 8), drawn.choice((4, 8))

    def restore(self) -> None:
        """Have the memory as the worker has left it."""
        for fd, pages in self._pages.items():
            for at, data in _data(fd):
                os.pwrite(fd, pages.get(at, bytes(len(data))), at)
        with suppress(BlockingIOError):  # a successor must not wait for room for its replies
            while self._kernel.recv(_LONGEST, socket.MSG_DONTWAIT):
                pass

    def succeed(self, *, afresh: bool = False, extra: Sequence[bytes] = ()) -> str:
        """Take over in a process of its own, and serve: "served", "refused: WHY", or how it ended.

        With *afresh*, that process maps the memory anew, as one of another program does.
        """
        ours, theirs = os.pipe()
        if (pid := os.fork()) == 0:
            result = ""
            try:
                signal.alarm(_LIMIT_S)
                result = self._serve(afresh=afresh, extra=extra)
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
            finally:
                os.write(theirs, result.encode())
                os._exit(0)
        os.close(theirs)
        with open(ours) as pipe:
            result = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return result if status == 0 else f"ended with {status}"

    def _serve(self, *, afresh: bool, extra: Sequence[bytes]) -> str:
        core = self.core
        try:
            if afresh:
                core = self._made(-1, core.memory)
            core.take_over()
        except OSError as error:
            return f"refused: {self._python.damage or os.strerror(error.errno or errno.EIO)}"
        core.start()
        for request in [*extra, *self._later]:
            core.answer(request)
        until = time.monotonic() + _RESUMED_S
        while core.in_flight() and time.monotonic() < until:
            time.sleep(0.001)
        return "served"


def _data(fd: int) -> Iterator[tuple[int, bytes]]:
    """Yield each page of a memory that has memory, with its offset."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        for at in range(start, end, resource.getpagesize()):
            page = os.pread(fd, resource.getpagesize(), at)
            if any(page):
                yield at, page


def attempt(source: Path, config: Effective, seed: int, trials: int) -> None:
    """Fail if a successor does neither serve nor refuse to."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, most))
    left = Left(source, config)
    drawn = random.Random(seed)  # noqa: S311
    for trial in range(trials):
        left.restore()
        done = left.spoil(drawn)
        result = left.succeed(afresh=bool(trial % 2))
        assert result == "served" or result.startswith("refused: "), (seed, trial, result, done)


if __name__ == "__main__":
    for option in PLAIN, UNOPENED:
        attempt(Path(sys.argv[1]), option, int(sys.argv[2]), int(sys.argv[3]))

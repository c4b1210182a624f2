"""The control page of a volume: memory that the plugin, the guards and the worker share.

The keeper makes a memfd (`make`) and hands it over to the worker. The guards and the worker map the
page (`Page`) and write to it. The plugin reads it (`read`), also after a restart, and takes no
value unchecked. A worker without a keeper uses a page of its own.

Behind the page lie the counters (counters.py). An older program made none.

Process ids are those of the worker's own pid namespace. Descriptors are numbers in the table that
guards and worker share. So another program that goes on with the volume (predecessor.py) has a page
of its own. Fields are added where older programs have zeros; the version stays.

The generation and the process descriptor of the worker are one word, which core/clone.pyx changes
by compare-and-swap: of two fresh workers, one alone can win.
"""

import enum
import math
import mmap
import os
import signal
import time
from collections.abc import Iterator
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, fcntl
from struct import Struct
from typing import Final, NamedTuple

from passthrough.linux.pidfd import lives
from passthrough.session.abi import Opcode
from passthrough.worker import counters, live

SIZE: Final = counters.AT
MAGIC: Final = 0x7061_7373_6663_7470
VERSION: Final = 1
GUARDS: Final = 2
RECENT: Final = 16
"""The last deaths that the page has room for; one less is read."""
STATUS_UNKNOWN: Final = -1
"""The status of a worker that died after its parent, so that no guard could wait for it."""
NO_FD: Final = -1
RETIRED: Final = 79
"""The exit status of a worker that was asked to make room for another one, by SIGUSR1."""
PROGRAM_ROOM: Final = 32

_MOST_PIDS: Final = 1 << 22  # PID_MAX_LIMIT of Linux
_LONGEST_STATUS: Final = 0xFFFF

_HEAD: Final = Struct("<QI")  # magic, version
_WORKER_PID: Final = Struct("<i")
_WORD: Final = Struct("<Ii")  # generation, process descriptor of the worker
_PAIR: Final = Struct("<ii")
_COUNT: Final = Struct("<I")
_STATUS: Final = Struct("<i")
_CRASH: Final = Struct("<IIQ")  # opcode, 1 if it is set, nodeid
# Seconds of the wall clock and of CLOCK_BOOTTIME, pid, wait status, opcode, spare, nodeid.
_DEATH: Final = Struct("<ddiiIIQ")

_BYTE: Final = Struct("<B")
_TIME: Final = Struct("<d")

_WORKER_PID_AT: Final = 12
WORD_AT: Final = 16
_GUARD_PIDS_AT: Final = 24
_GUARD_FDS_AT: Final = 32
_DEATHS_AT: Final = 40
_ENDED_AT: Final = 44
_END_STATUS_AT: Final = 48
_TAKEOVER_AT: Final = 52
_SETTLED_AT: Final = 56
_HELD_BY_AT: Final = 60
CRASH_AT: Final = 64
_RECORD_FD_AT: Final = 80
_WAITS_AT: Final = 84  # then counters.VERSION_AT and live.VERSION_AT
_HELD_UNTIL_AT: Final = 88
_PROGRAM_AT: Final = 96
_RECENT_AT: Final = 128  # and live.AT


class End(enum.IntEnum):
    """The end of the service of a volume."""

    NONE = 0
    ORDERLY = 1
    """An unmount, SIGTERM, the keeper's end, or an error that the log has."""
    GIVEN_UP = 2
    """The worker has died too often by its own fault."""
    REPLACED = 3
    """Another program goes on with the volume."""


class Death(NamedTuple):
    """The death of a worker that a guard has noticed."""

    at: float
    """Seconds since 1970."""
    boot_s: float
    """Seconds of CLOCK_BOOTTIME, to compare with other deaths."""
    pid: int
    status: int
    """The wait status, wait(2), or STATUS_UNKNOWN."""
    opcode: int
    """The request in which the worker crashed, linux/fuse.h; 0 if it is not known."""
    nodeid: int

    @property
    def own_fault(self) -> bool:
        """Return whether the worker died by itself: not by a SIGKILL or SIGTERM from outside."""
        return self.status == STATUS_UNKNOWN or not (
            os.WIFSIGNALED(self.status)
            and os.WTERMSIG(self.status) in {signal.SIGKILL, signal.SIGTERM}
        )


class State(NamedTuple):
    """The content of a control page, checked."""

    worker_pid: int
    """0 if there is none."""
    guard_pids: tuple[int, ...]
    """The guards that live, or lived when the page was written last."""
    generation: int
    deaths: int
    recent: tuple[Death, ...]
    """The last deaths, the oldest first; RECENT - 1 at most."""
    ended: End
    end_status: int
    """The exit status of the guards, if the service has ended."""
    last_takeover_us: int
    """From the death of a worker to the service of the next one, in microseconds; 0: none yet."""
    settled: int
    """The generation of the worker that has taken over last; the current one, if that serves."""
    replaceable: bool
    """True if another program can go on with the volume, as far as the page shows."""
    waits: bool
    """True while a worker that follows another program's waits for the keeper's KEEP."""
    program: str
    """The identity of the program that made the page; empty for an older one."""


class ControlError(ValueError):
    """A descriptor that leads to no control page of this version."""


def make(program: str = "") -> int:
    """Return the descriptor of a new page, which keeps its size; the caller owns it.

    *program* is the identity of this program, PROGRAM_ROOM ASCII characters at most.
    """
    fd = os.memfd_create("passfs-control", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, counters.END)
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
        os.pwrite(fd, _HEAD.pack(MAGIC, VERSION), 0)
        os.pwrite(fd, _WORD.pack(0, NO_FD), WORD_AT)
        os.pwrite(fd, _PAIR.pack(NO_FD, NO_FD), _GUARD_FDS_AT)
        os.pwrite(fd, _BYTE.pack(counters.VERSION), counters.VERSION_AT)
        os.pwrite(fd, _BYTE.pack(live.VERSION), live.VERSION_AT)
        os.pwrite(fd, program.encode("ascii")[:PROGRAM_ROOM], _PROGRAM_AT)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read(fd: int) -> State:
    """Return the content of the page *fd*.

    Raises:
        ControlError: it is no page of this version, or has a value that cannot be.
        OSError: *fd* cannot be read.
    """
    return _checked(os.pread(fd, SIZE, 0))


def describe(status: int) -> str:
    """Return how a process with the wait status *status* ended, as the end of a sentence."""
    if status == STATUS_UNKNOWN:
        return "ended with an unknown status"
    if os.WIFSIGNALED(status):
        return f"was killed by {_signal_name(os.WTERMSIG(status))}"
    return f"ended with status {os.WEXITSTATUS(status)}"


def describe_request(opcode: int, nodeid: int) -> str:
    """Return the request of a crash as the end of a sentence; empty if there is none."""
    if not opcode:
        return ""
    known = {each.value: each.name.lower() for each in Opcode}
    return f" in {known.get(opcode, f'opcode {opcode}')} of inode {nodeid}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none, signal(7)
        return f"signal {number}"


def _checked(page: bytes) -> State:
    if len(page) != SIZE or _HEAD.unpack_from(page) != (MAGIC, VERSION):
        raise ControlError("no control page of this version")
    (worker_pid,) = _WORKER_PID.unpack_from(page, _WORKER_PID_AT)
    guard_pids = _PAIR.unpack_from(page, _GUARD_PIDS_AT)
    if not all(0 <= pid <= _MOST_PIDS for pid in (worker_pid, *guard_pids)):
        raise ControlError("a process id that cannot be")
    (ended,) = _COUNT.unpack_from(page, _ENDED_AT)
    if ended not in {*End}:
        raise ControlError(f"an end of kind {ended}")
    (deaths,) = _COUNT.unpack_from(page, _DEATHS_AT)
    return State(
        worker_pid=worker_pid,
        guard_pids=tuple(pid for pid in guard_pids if pid),
        generation=_WORD.unpack_from(page, WORD_AT)[0],
        deaths=deaths,
        recent=tuple(_recent(page, deaths)),
        ended=End(ended),
        end_status=_STATUS.unpack_from(page, _END_STATUS_AT)[0],
        last_takeover_us=_COUNT.unpack_from(page, _TAKEOVER_AT)[0],
        settled=_COUNT.unpack_from(page, _SETTLED_AT)[0],
        replaceable=_STATUS.unpack_from(page, _RECORD_FD_AT)[0] > 0,
        waits=bool(page[_WAITS_AT]),
        program=page[_PROGRAM_AT:_RECENT_AT].rstrip(b"\0").decode("ascii", "replace"),
    )


def _recent(page: bytes, deaths: int) -> Iterator[Death]:
    # The place of the oldest one may be written at this moment.
    for number in range(max(0, deaths - (RECENT - 1)), deaths):
        place = _RECENT_AT + number % RECENT * _DEATH.size
        at, boot_s, pid, status, opcode, _, nodeid = _DEATH.unpack_from(page, place)
        possible = math.isfinite(at) and at > 0 and math.isfinite(boot_s)
        if not possible or not 0 <= pid <= _MOST_PIDS or not -1 <= status <= _LONGEST_STATUS:
            raise ControlError(f"a death that cannot be: {at}, {pid}, {status}")
        yield Death(at, boot_s, pid, status, opcode, nodeid)


class Page:
    """The page in the memory of a guard or a worker; what one of them writes, all see at once."""

    def __init__(self, fd: int) -> None:
        """Map the page *fd*, which the caller may close.

        Raises:
            ControlError: it is no page of this version.
            OSError: it cannot be mapped.
        """
        if (size := os.fstat(fd).st_size) < SIZE:
            raise ControlError("no control page of this version")
        self.memory = mmap.mmap(fd, min(size, counters.END))
        """For the core, which writes the word, the crash and the counters."""
        self.state()

    @classmethod
    def private(cls) -> "Page":
        """Return a page that no plugin reads."""
        fd = make()
        try:
            return cls(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Unmap the page."""
        self.memory.close()

    def _store(self, at: int, data: bytes) -> None:
        """Write *data* in one piece; struct.pack_into() would write zeros first."""
        self.memory[at : at + len(data)] = data

    def state(self) -> State:
        """Return the content; raise ControlError as `read` does."""
        return _checked(self.memory[:SIZE])

    @property
    def word(self) -> int:
        """The generation and the worker's descriptor as one number, for the compare-and-swap."""
        return int.from_bytes(self.memory[WORD_AT : WORD_AT + _WORD.size], "little")

    @property
    def generation(self) -> int:
        """The number of workers so far."""
        return int(_WORD.unpack_from(self.memory, WORD_AT)[0])

    @property
    def worker_fd(self) -> int:
        """The process descriptor of the worker, or NO_FD."""
        return int(_WORD.unpack_from(self.memory, WORD_AT)[1])

    @property
    def worker_pid(self) -> int:
        """The process id of the worker; 0: none has written it yet."""
        return int(_WORKER_PID.unpack_from(self.memory, _WORKER_PID_AT)[0])

    @worker_pid.setter
    def worker_pid(self, pid: int) -> None:
        self._store(_WORKER_PID_AT, _WORKER_PID.pack(pid))

    def guard(self, index: int) -> tuple[int, int]:
        """Return the process id (0: none) and the process descriptor (or NO_FD) of a guard."""
        pids = _PAIR.unpack_from(self.memory, _GUARD_PIDS_AT)
        return pids[index], _PAIR.unpack_from(self.memory, _GUARD_FDS_AT)[index]

    def set_guard(self, index: int, pid: int, fd: int) -> None:
        """Note a guard, or with 0 and NO_FD that there is none."""
        self._store(_GUARD_FDS_AT + index * _STATUS.size, _STATUS.pack(fd))
        self._store(_GUARD_PIDS_AT + index * _STATUS.size, _STATUS.pack(pid))

    @property
    def settled(self) -> int:
        """The generation of the worker that has taken over last."""
        return int(_COUNT.unpack_from(self.memory, _SETTLED_AT)[0])

    def settle(self, generation: int, takeover_us: int) -> None:
        """Note that the worker of *generation* serves, so many microseconds after the death."""
        self._store(_TAKEOVER_AT, _COUNT.pack(min(takeover_us, 0xFFFF_FFFF)))
        self._store(_SETTLED_AT, _COUNT.pack(generation))

    def held_s(self) -> float:
        """Return for how many seconds no guard may make a worker, as long as that stays so."""
        (pid,) = _STATUS.unpack_from(self.memory, _HELD_BY_AT)
        if pid <= 0 or self.is_replaced or not lives(pid):
            return 0.0
        (until_s,) = _TIME.unpack_from(self.memory, _HELD_UNTIL_AT)
        return float(max(0.0, until_s - time.clock_gettime(time.CLOCK_BOOTTIME)))

    def hold(self, pid: int, until_s: float) -> None:
        """Note that the process of another program is about to go on with the volume; 0: none is.

        Until that time of CLOCK_BOOTTIME no guard makes a worker, as long as the process lives.
        """
        self._store(_HELD_UNTIL_AT, _TIME.pack(until_s))
        self._store(_HELD_BY_AT, _STATUS.pack(pid))

    @property
    def record_fd(self) -> int:
        """The descriptor of the session's record (record.py); 0: there is none."""
        return int(_STATUS.unpack_from(self.memory, _RECORD_FD_AT)[0])

    @record_fd.setter
    def record_fd(self, fd: int) -> None:
        self._store(_RECORD_FD_AT, _STATUS.pack(fd))

    @property
    def is_replaced(self) -> bool:
        """Whether another program goes on with the volume."""
        return bool(self.memory[_ENDED_AT] == End.REPLACED)

    @property
    def waits(self) -> bool:
        """Whether a worker that follows another program's waits for the keeper."""
        return bool(self.memory[_WAITS_AT])

    @waits.setter
    def waits(self, waits: bool) -> None:
        self._store(_WAITS_AT, _BYTE.pack(waits))

    def take_history(self, before: "Page") -> None:
        """Copy the deaths and the counters that another page has."""
        self._store(_RECENT_AT, before.memory[_RECENT_AT : _RECENT_AT + RECENT * _DEATH.size])
        self._store(_DEATHS_AT, before.memory[_DEATHS_AT : _DEATHS_AT + _COUNT.size])
        counters.copy(before.memory, self.memory)

    def crash(self) -> tuple[int, int]:
        """Return the opcode and the nodeid of the request in which the worker crashed, or zeros."""
        opcode, is_set, nodeid = _CRASH.unpack_from(self.memory, CRASH_AT)
        return (opcode, nodeid) if is_set else (0, 0)

    def forget_crash(self) -> None:
        """Forget the request of the last crash."""
        self._store(CRASH_AT, _CRASH.pack(0, 0, 0))

    def add_death(self, death: Death) -> None:
        """Add a death to the count and to the last ones."""
        (deaths,) = _COUNT.unpack_from(self.memory, _DEATHS_AT)
        place = _RECENT_AT + deaths % RECENT * _DEATH.size
        at, boot_s, pid, status, opcode, nodeid = death
        self._store(place, _DEATH.pack(at, boot_s, pid, status, opcode, 0, nodeid))
        self._store(_DEATHS_AT, _COUNT.pack(deaths + 1))

    def end(self, kind: End, status: int) -> None:
        """Note that the service ends, and with which exit status; the first note stays."""
        if not self.memory[_ENDED_AT]:
            self._store(_END_STATUS_AT, _STATUS.pack(status))
            self._store(_ENDED_AT, _COUNT.pack(kind))

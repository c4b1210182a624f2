"""The standby of one mount, as the plugin sees it: by the control page, passthrough/worker/control.

Beside the worker stand two guards, which share its descriptors. If the worker dies, a guard makes
the next one, which takes over. If a guard dies, the other one makes a new guard. All of them note
their process ids and the deaths of workers in the control page, and log them. The plugin has no
part in this: it shows the state (Status), and has the out-of-memory killer prefer a worker to
guards.

The plugin checks everything that it reads, because malicious code in a worker can write the page.
It takes a process id only if the process belongs to the group of the first guard.
"""

import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

import trio

from passthrough.options.timeouts import Timeouts
from passthrough.session.abi import Opcode
from passthrough.worker import control, counters, live
from passthrough.worker.counters import Counters
from plugin.mounting.process import UNKNOWN_RETURNCODE, Process

# A worker that fails by itself again and again is replaced after a pause of up to 1 s.
FIRST_LOOK_S = 0.01
LONGEST_PAUSE_S = 0.5
# Added to oom_score_adj of a worker: 1 % of the memory, proc(5). A worker has a successor, guards
# have none if they all die. More would have the kernel kill a worker in place of a large program.
OOM_APART = 10
OOM_MOST = 1000
# Seconds since 1970: the year 2106. Python has no date for some greater numbers.
LATEST_S = 4294967296.0


class Deaths(NamedTuple):
    """The workers of a mount that have died, and the guards that are ready for the next death."""

    standby: str
    """"ready" if a guard lives, else "missing"."""
    number: int
    last: str
    """When and how the last one died; empty if none has."""


class _Serving(NamedTuple):
    """The worker that serves."""

    pid: int
    """In the plugin's pid namespace; 0 if it is not known."""
    shown: int
    """In the pid namespace of the procfs that Status uses."""


class Standby:
    """The guards of one mount, and the worker that serves at the moment."""

    def __init__(self, page_fd: int = -1) -> None:
        """Take the descriptor of the control page; -1 if there is none."""
        self._page_fd = page_fd
        self._state: control.State | None = None
        self._process: Process | None = None
        self._serving = _Serving(0, 0)

    def attach(self, process: Process) -> None:
        """Set the first guard; without a standby, the worker."""
        self._process = process

    def descriptors(self) -> dict[str, int]:
        """Return the descriptor of the page by its kind in the fd store, or nothing."""
        return {"control": self._page_fd} if self._page_fd >= 0 else {}

    def close(self) -> None:
        """Close the page; the last state of it stays."""
        self._read()
        fd, self._page_fd = self._page_fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def state(self) -> control.State | None:
        """The content of the page; None if it has never been read."""
        return self._read()

    def exists(self) -> bool:
        """Return whether guards have made a worker."""
        state = self._read()
        return state is not None and state.generation > 0

    def worker_pid(self) -> int:
        """Return the process id of the worker, to be shown; 0 without a standby."""
        state = self._read()
        if state is None or self._process is None or state.worker_pid in {0, self._process.group}:
            return 0
        pid = state.worker_pid
        if pid != self._serving.pid and (pid_fd := self._open(pid)) >= 0:
            os.close(pid_fd)
        return self._serving.shown

    def members(self) -> tuple[int, tuple[int, ...]]:
        """Return the ids of the worker and of the guards that live, in the plugin's pid namespace.

        The id of the worker is 0 if it is not known.
        """
        state = self._read()
        if state is None or not state.generation:
            return (0 if self._process is None else max(0, self._process.group)), ()
        worker = state.worker_pid if self._lives(state.worker_pid) else 0
        return worker, tuple(filter(self._lives, state.guard_pids))

    def deaths(self) -> Deaths | None:
        """Return the deaths so far, or None without a standby."""
        state = self._read()
        if state is None or self._process is None or not state.generation:
            return None
        lives = any(map(self._lives, state.guard_pids))
        last = _described(state.recent[-1]) if state.recent else ""
        return Deaths("ready" if lives else "missing", state.deaths, last)

    def counters(self) -> Counters | None:
        """Return what the volume has served so far; also without a standby.

        None: an older program made the mount, or its processes have ended.
        """
        if self._page_fd >= 0:
            with suppress(OSError):
                return counters.read(self._page_fd)
        return None

    def can_change_timeouts(self) -> bool:
        """Return whether the worker takes other timeouts; one of an older program does not."""
        if self._page_fd >= 0:
            with suppress(OSError):
                return live.can_change(self._page_fd)
        return False

    def change_timeouts(self, timeouts: Timeouts) -> None:
        """Let *timeouts* be in force, if the worker takes them; also without a standby.

        Raises:
            OSError: the page cannot be mapped.
        """
        if self.can_change_timeouts():
            live.change(self._page_fd, timeouts)

    def lives(self) -> bool:
        """Return whether a guard or the worker lives."""
        state = self._read()
        return state is not None and any(map(self._lives, (state.worker_pid, *state.guard_pids)))

    def ending(self, returncode: int | None) -> str:
        """Return how the service has ended; *returncode* is that of the first process.

        The page knows more than the return code, if the first process was killed earlier.
        """
        state = self._read()
        known = state is not None and state.generation > 0
        if state is None or not known or state.ended in {control.End.NONE, control.End.REPLACED}:
            return describe_end(returncode)
        if state.ended is control.End.ORDERLY:
            return describe_end(state.end_status & 0xFF)
        last = f": {_described(state.recent[-1])}" if state.recent else ""
        return f"has died too often and is not replaced any more; deaths: {state.deaths}{last}"

    async def follow(self) -> None:
        """Set the workers apart, one after the other, until cancelled or without a standby."""
        while (state := self._read()) is not None and state.generation:
            pid_fd = self._open(state.worker_pid)
            if pid_fd >= 0:
                try:
                    self._set_apart(state.worker_pid)
                    await trio.lowlevel.wait_readable(pid_fd)
                finally:
                    os.close(pid_fd)
            await self._wait_for_another(state)

    async def _wait_for_another(self, before: control.State) -> None:
        """Wait until the page names another worker than *before*; at least FIRST_LOOK_S."""
        pause_s = FIRST_LOOK_S
        await trio.sleep(pause_s)
        while (state := self._read()) is not None and state.worker_pid == before.worker_pid:
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _read(self) -> control.State | None:
        """Return the content of the page; if it cannot be, what was read before."""
        if self._page_fd >= 0:
            with suppress(control.ControlError, OSError):
                self._state = control.read(self._page_fd)
        return self._state

    def _open(self, pid: int) -> int:
        """Note that *pid* serves, and return its process descriptor; -1 if it does not."""
        if self._process is None or pid <= 0 or (pid_fd := self._process.open_member(pid)) < 0:
            return -1
        if (shown := self._process.shown_pid(pid, pid_fd)) > 0:
            self._serving = _Serving(pid, shown)
        return pid_fd

    def _lives(self, pid: int) -> bool:
        if self._page_fd < 0 or self._process is None or pid <= 0:
            return False
        if (pid_fd := self._process.open_member(pid)) < 0:
            return False
        os.close(pid_fd)
        return True

    def _set_apart(self, pid: int) -> None:
        """Have the out-of-memory killer prefer the worker *pid* to the guards.

        Raising the value needs no privilege. Guards and fork server have that of the plugin.
        """
        if self._process is None or self._process.group <= 0:
            return
        with suppress(OSError, ValueError):  # it has ended
            with open("/proc/self/oom_score_adj", "rb") as file:
                apart = min(int(file.read()) + OOM_APART, OOM_MOST)
            with open(f"/proc/{pid}/oom_score_adj", "r+b", buffering=0) as file:
                if int(file.read()) < apart:
                    file.write(b"%d" % apart)


def describe_end(returncode: int | None) -> str:
    """Return how a process with *returncode* has ended, as the end of a sentence."""
    if returncode is None:
        return "does not end"
    if returncode == UNKNOWN_RETURNCODE:
        return control.describe(control.STATUS_UNKNOWN)
    status = -returncode if returncode < 0 else (returncode & 0xFF) << 8
    return control.describe(status)


def _cause(death: control.Death) -> str:
    """Return how a worker died, and in which request, as the end of a sentence."""
    cause = control.describe(death.status)
    if not death.opcode:
        return cause
    known = death.opcode in {*Opcode}
    opcode = Opcode(death.opcode).name if known else f"opcode {death.opcode}"
    return f"{cause} while it served {opcode} of inode {death.nodeid}"


def _described(death: control.Death) -> str:
    """Return when and how a worker died."""
    at = datetime.fromtimestamp(min(death.at, LATEST_S), UTC)
    return f"{at:%Y-%m-%d %H:%M:%S} UTC: {_cause(death)}"

"""A volume with standby: its processes, as the control page has them, and its resources.

All is read from outside: the control page and the tables lie in memory that /proc/PID/fd leads to.
"""

import contextlib
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from passthrough.worker import control
from passthrough.worker.control import State
from tests.passthrough.core.probe_outside import held
from tests.support.tools.mounted import Mounted, mounted
from tests.support.tools.mounts import forget
from tests.support.tools.processes import children, descriptors

CONTROL, TABLES = "/memfd:passfs-control (deleted)", "/memfd:passfs-tables (deleted)"
GUARDS = 2
LIMIT_S = 20.0
POLL_S = 0.001
SETTLING_S = 0.2
# A surplus thread ends after its next request, service.pyx. This many requests reach all of them.
REQUESTS = 50


class TakeOverError(AssertionError):
    """No worker has taken over, or a guard is missing."""


class Resources(NamedTuple):
    """The resources of a volume at one time."""

    tables: Mapping[str, int]
    """The number of each thing in the tables, probe_outside.pyx."""
    descriptors: Counter[str]
    """Target of a descriptor of the worker -> number of such descriptors."""
    threads: int
    guards: int
    numbers: Mapping[str, str] = {}
    """Target -> the numbers of its descriptors, and the whole targets."""

    def differences(self, before: Self) -> list[str]:
        """Return a line for each resource of which there is more than *before*, or no guard."""
        pairs = [(name, self.tables[name], before.tables[name]) for name in self.tables]
        pairs.append(("threads", self.threads, before.threads))
        found = [f"{name}: {now}, and {then} before" for name, now, then in pairs if now > then]
        for target, number in (self.descriptors - before.descriptors).items():
            all_of_these = self.numbers.get(target, "")
            found.append(f"{number} descriptors of {target} more than before {all_of_these}")
        for target, number in (before.descriptors - self.descriptors).items():
            all_of_these = before.numbers.get(target, "")
            found.append(f"{number} descriptors of {target} fewer than before {all_of_these}")
        if self.guards < before.guards:
            found.append(f"guards: {self.guards}, and {before.guards} before")
        return found


class Volume:
    """A mount by the command, served by a worker and, with standby, by guards."""

    def __init__(self, served: Mounted) -> None:
        self.served = served
        first = served.worker_pid
        self._control = open_target(first, CONTROL)
        self._tables = open_target(first, TABLES)
        if self._tables is None:
            raise TakeOverError("the worker has no tables in a memfd")

    @property
    def has_standby(self) -> bool:
        """Return whether guards wait beside the worker."""
        return self._control is not None and bool(self.state().guard_pids)

    def state(self) -> State:
        """Return the content of the control page."""
        assert self._control is not None
        return control.read(self._control)

    def worker(self) -> int:
        """Return the process id of the worker."""
        return self.state().worker_pid if self._control is not None else self.served.worker_pid

    def guards(self) -> list[int]:
        """Return the process ids of the guards that live."""
        if self._control is None:
            return []
        return [pid for pid in self.state().guard_pids if is_alive(pid)]

    def whole(self) -> State:
        """Wait for a worker and both guards; return the state.

        Raises:
            TakeOverError: one of them is missing after LIMIT_S.
        """
        deadline = time.monotonic() + LIMIT_S
        while True:
            state = self.state()
            serves = is_alive(state.worker_pid) and self._settled(state)
            if serves and len(self.guards()) == GUARDS:
                return state
            if time.monotonic() > deadline or state.ended:
                raise TakeOverError(f"not whole: {state}; {self.served.logged()[-2_000:]}")
            time.sleep(POLL_S)

    def _settled(self, state: State) -> bool:
        """Return whether the worker in *state* serves, and not only begins to."""
        return state.generation >= 1

    def resources(self) -> Resources:
        """Return the current resources."""
        assert self._tables is not None
        pid = self.worker()
        opened = targets(pid)
        return Resources(
            held(self._tables),
            Counter({target: len(numbers) for target, numbers in opened.items()}),
            len(os.listdir(f"/proc/{pid}/task")),
            len(self.guards()),
            {target: ", ".join(numbers) for target, numbers in opened.items()},
        )

    def settled(self, before: Resources | None = None) -> Resources:
        """Return the resources after the worker has released all it can, or after LIMIT_S.

        FORGET and RELEASE have no answer to wait for. So wait until there is no difference from
        *before*, or without *before* until the resources no longer change.
        """
        deadline = time.monotonic() + LIMIT_S
        last = None
        while True:
            forget(self.served.mountpoint)
            time.sleep(SETTLING_S)
            for _ in range(REQUESTS):
                os.statvfs(self.served.mountpoint)
            now = self.resources()
            if (before or last) and not now.differences(before or last or now):
                return now
            if time.monotonic() > deadline:
                return now
            last = now

    def close(self) -> None:
        """Close what leads to the volume's memory."""
        for fd in (self._control, self._tables):
            if fd is not None:
                os.close(fd)


@contextlib.contextmanager
def volume(
    base: Path, options: Mapping[str, str], program: str = "passthrough"
) -> Iterator[Volume]:
    """Serve `base/source` at `base/mount` for the length of the block, see `mounted`."""
    with mounted(base, options, program=program) as served:
        found = Volume(served)
        try:
            yield found
        finally:
            found.close()


def kill(pid: int) -> bool:
    """Kill the process *pid*, and return False if it has ended before."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def is_alive(pid: int) -> bool:
    """Return whether *pid* is a process that has not ended, not even as a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return pid > 0 and stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def targets(pid: int) -> dict[str, list[str]]:
    """Return the descriptors of each target in a process; all pipes count as one target."""
    found: dict[str, list[str]] = {}
    for fd, target in descriptors(pid).items():
        kind = re.sub(r"\d+", "N", target) if ":[" in target else target
        found.setdefault(kind, []).append(f"{fd} {target}")
    return found


def open_target(pid: int, target: str) -> int | None:
    """Open the memory that a descriptor of *pid* leads to; None if no descriptor does."""
    for fd, found in descriptors(pid).items():
        if found == target:
            with contextlib.suppress(FileNotFoundError):  # closed since
                return os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY)
    return None


def descendants(pid: int) -> set[int]:
    """Return the children of *pid*, their children and so on."""
    found = children(pid)
    return found.union(*(descendants(child) for child in found))

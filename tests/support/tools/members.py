"""The processes of a volume in an engine, by the host's ids.

The control page of a managed plugin has the ids of the plugin's own pid namespace. The worker and
its guards are a process group. A worker may have a child for a moment (core/notify.pyx), which is
in that group, too, so the page tells the worker from the others.
"""

import os
import time
from pathlib import Path
from typing import Self

from passthrough.worker import control
from passthrough.worker.control import State
from tests.standby.volume import CONTROL, GUARDS, LIMIT_S, POLL_S, TakeOverError, open_target
from tests.support.tools.processes import group


class Members:
    """The worker and the guards of a volume with a standby; a context manager."""

    def __init__(self, worker: int) -> None:
        """Take the process id of the present worker."""
        self._group = os.getpgid(worker)
        page = open_target(worker, CONTROL)
        assert page is not None
        self._page = page

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._page)

    def state(self) -> State:
        """Return the content of the control page, with the host's ids of live processes."""
        state = control.read(self._page)
        ids = {_inner(pid): pid for pid in group(self._group)}
        guards = tuple(ids[pid] for pid in state.guard_pids if pid in ids)
        return state._replace(worker_pid=ids.get(state.worker_pid, 0), guard_pids=guards)

    def whole(self) -> State:
        """Wait for a worker and both guards.

        Raises:
            TakeOverError: one of them is missing after LIMIT_S.
        """
        limit = time.monotonic() + LIMIT_S
        while True:
            state = self.state()
            if state.worker_pid and len(state.guard_pids) == GUARDS:
                return state
            if time.monotonic() > limit:
                raise TakeOverError(f"not whole: {state}")
            time.sleep(POLL_S)

    def worker(self) -> int:
        """Return the worker, or 0 if there is none at this time."""
        return self.state().worker_pid


def _inner(pid: int) -> int:
    """Return the id of the live process *pid* in its own pid namespace, or 0: proc(5), NSpid."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    (line,) = (line for line in status.splitlines() if line.startswith("NSpid:"))
    return int(line.split()[-1])

"""The resources of a worker: counts from /proc and the worker's own, and leaks among them."""

import contextlib
import fcntl
import json
import os
import socket
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.support.tools.mounted import Mounted, device_of
from tests.support.tools.mounts import forget
from tests.support.tools.processes import children, descriptors, parent
from tests.support.tools.rings import rings

LIMIT_S = 30.0
POLL_S = 0.2
ANSWER_BYTES = 4096
# A surplus thread ends after its next request, service.pyx. This many requests reach all
# threads.
REQUESTS = 50

# It runs in a mount namespace of its own, because fusectl may not be mounted.
WAITING = """
[ -e "/sys/fs/fuse/connections/$1/waiting" ] || mount -t fusectl none /sys/fs/fuse/connections
cat "/sys/fs/fuse/connections/$1/waiting"
"""


class Resources(NamedTuple):
    """The resources of a worker at one time."""

    counts: Mapping[str, int]
    """The worker's own counts, probe_counts.pyx."""
    descriptors: Counter[str]
    """Target of a descriptor -> number of such descriptors."""
    threads: int
    """Threads without a ring of io_uring. Those with a ring stay, queues.pyx."""
    processes: Mapping[int, str]
    """PID -> state (Z is a zombie): children of worker, guards and command, without live guards."""
    unanswered: int
    """Requests that the worker has not answered."""

    def more_than(self, before: Self) -> list[str]:
        """Return a line for each resource of which there is more than *before*."""
        pairs = [(name, self.counts[name], before.counts[name]) for name in self.counts]
        pairs += [("threads", self.threads, before.threads)]
        pairs += [("unanswered requests", self.unanswered, before.unanswered)]
        found = [f"{name}: {now}, and {then} before" for name, now, then in pairs if now > then]
        for name, number in (self.descriptors - before.descriptors).items():
            found.append(f"{number} descriptors of {name}")
        found += [f"process {pid}, state {state}" for pid, state in self.processes.items()]
        return found


class Memory(NamedTuple):
    """The worker's memory, in two measures."""

    blocks: int
    """Blocks of Python's allocator in use: about the number of objects."""
    resident: int
    """Resident memory in bytes, with free memory that allocators keep."""


class Watch(NamedTuple):
    """One watched worker. *end* is the test's end of the socket at the worker's standard input."""

    served: Mounted
    end: socket.socket

    def resources(self) -> Resources:
        """Return the current resources."""
        answer = self._ask()
        pid = self.served.worker_pid
        return Resources(
            answer["held"],
            Counter(descriptors(pid).values()),
            len(os.listdir(f"/proc/{pid}/task")) - rings(pid),
            _others(pid, self.served.process.pid),
            _unanswered(self.served.mountpoint),
        )

    def settled(self, before: Resources | None = None) -> Resources:
        """Return the resources after the worker has released all it can, or after `LIMIT_S`.

        FORGET and RELEASE have no answer to wait for. So wait until there is no more than *before*,
        or without *before* until the resources no longer grow.
        """
        deadline = time.monotonic() + LIMIT_S
        last = None
        passing = self.served.mountpoint / "settling"
        while True:
            # The FORGET of this file arrives by /dev/fuse, even if other requests use io_uring: a
            # surplus thread that reads /dev/fuse ends after a request.
            passing.touch()
            passing.unlink()
            forget(self.served.mountpoint)
            time.sleep(POLL_S)
            for _ in range(REQUESTS):
                os.statvfs(self.served.mountpoint)
            now = self.resources()
            if not now.more_than(before or last or now) and (before or last):
                return now
            if time.monotonic() > deadline:
                return now
            last = now

    def memory(self) -> "Memory":
        """Return the worker's memory."""
        resident = _status(self.served.worker_pid)["VmRSS"]
        return Memory(self._ask()["blocks"], int(resident.removesuffix(" kB")) * 1024)

    def _ask(self) -> dict[str, Any]:
        self.end.settimeout(LIMIT_S)
        self.end.sendall(b"?")
        answer: dict[str, Any] = json.loads(self.end.recv(ANSWER_BYTES))
        return answer


def locked(top: Path) -> list[str]:
    """Return the regular files below *top* that are still locked."""
    found = []
    for directory, _, names in os.walk(top):
        for path in (os.path.join(directory, name) for name in names):
            if not stat.S_ISREG(os.lstat(path).st_mode):
                continue
            with open(path, "rb+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(path)
    return found


def _status(pid: int) -> Mapping[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _others(worker: int, command: int) -> dict[int, str]:
    makers = {worker, parent(worker), command}
    found = {}
    for pid in {child for maker in makers for child in children(maker)} - {worker}:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended since the listing
            status = _status(pid)
            if status["Name"] != "passfs-guard" or status["State"].startswith("Z"):
                found[pid] = status["State"]
    return found


def _unanswered(mountpoint: Path) -> int:
    words = ["unshare", "--mount", "sh", "-c", WAITING, "sh", str(device_of(mountpoint))]
    return int(subprocess.run(words, check=True, capture_output=True, timeout=LIMIT_S).stdout)

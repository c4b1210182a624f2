"""What a worker holds, as seen from outside and as it says itself, and what of it is too much."""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.soak.crowd import forget
from tests.support.tools.mounted import Mounted, device_of
from tests.support.tools.processes import children
from tests.support.tools.rings import rings

LIMIT_S = 30.0
POLL_S = 0.2
ANSWER_BYTES = 4096
# A thread too many leaves after its next request, kernel.py; this many are enough for all.
REQUESTS = 50

# In a namespace of its own, because not every machine has fusectl mounted.
WAITING = """
[ -e "/sys/fs/fuse/connections/$1/waiting" ] || mount -t fusectl none /sys/fs/fuse/connections
cat "/sys/fs/fuse/connections/$1/waiting"
"""


class Holdings(NamedTuple):
    """What a worker holds at one moment."""

    counts: Mapping[str, int]
    """What it says itself, watched.py."""
    descriptors: Counter[str]
    """What its open descriptors lead to."""
    threads: int
    """Without those that have a ring of io_uring each: they stay, queues.py."""
    processes: Mapping[int, str]
    """Its own children and its parent's other ones, with their state: Z is a zombie."""
    unanswered: int
    """Requests that the kernel waits for."""

    def more_than(self, before: Self) -> list[str]:
        """What is held beyond what was held *before*, a line for each."""
        pairs = [(what, self.counts[what], before.counts[what]) for what in self.counts]
        pairs += [("threads", self.threads, before.threads)]
        pairs += [("unanswered requests", self.unanswered, before.unanswered)]
        found = [f"{what}: {now}, and {then} before" for what, now, then in pairs if now > then]
        for name, number in (self.descriptors - before.descriptors).items():
            found.append(f"{number} descriptors of {name}")
        found += [f"process {pid}, state {state}" for pid, state in self.processes.items()]
        return found


class Memory(NamedTuple):
    """The worker's memory, in two measures."""

    blocks: int
    """What Python's own allocator has given out: about the number of objects."""
    resident: int
    """In bytes; in here is what allocators keep for later."""


class Watch(NamedTuple):
    """One worker under watch; *end* is our end of its standard input."""

    served: Mounted
    end: socket.socket

    def holdings(self) -> Holdings:
        """Look."""
        answer = self._ask()
        pid = self.served.worker_pid
        others = children(pid) | children(self.served.process.pid) - {pid}
        return Holdings(
            answer["held"],
            _descriptors(pid),
            len(os.listdir(f"/proc/{pid}/task")) - rings(pid),
            {other: _status(other)["State"] for other in others},
            _unanswered(self.served.mountpoint),
        )

    def settled(self, before: Holdings | None = None) -> Holdings:
        """Look when the worker has nothing left to forget, or has held on for `LIMIT_S`.

        FORGET and RELEASE have no answer to wait for. That is when there is nothing more than
        *before*, or, where nothing is known of that, when nothing changes any more.
        """
        deadline = time.monotonic() + LIMIT_S
        last = None
        passing = self.served.mountpoint / "settling"
        while True:
            # The FORGET of this one wakes /dev/fuse, also where the rest comes over io_uring: a
            # thread that is not needed leaves after a request.
            passing.touch()
            passing.unlink()
            forget(self.served.mountpoint)
            time.sleep(POLL_S)
            for _ in range(REQUESTS):
                os.statvfs(self.served.mountpoint)
            now = self.holdings()
            if not now.more_than(before or last or now) and (before or last):
                return now
            if time.monotonic() > deadline:
                return now
            last = now

    def memory(self) -> "Memory":
        """What the worker's memory comes to."""
        resident = _status(self.served.worker_pid)["VmRSS"]
        return Memory(self._ask()["blocks"], int(resident.removesuffix(" kB")) * 1024)

    def _ask(self) -> dict[str, Any]:
        self.end.settimeout(LIMIT_S)
        self.end.sendall(b"?")
        answer: dict[str, Any] = json.loads(self.end.recv(ANSWER_BYTES))
        return answer


def _status(pid: int) -> Mapping[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _descriptors(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # one may be closed while we look
            found[os.readlink(f"/proc/{pid}/fd/{name}")] += 1
    return found


def _unanswered(mountpoint: Path) -> int:
    words = ["unshare", "--mount", "sh", "-c", WAITING, "sh", str(device_of(mountpoint))]
    return int(subprocess.run(words, check=True, capture_output=True, timeout=LIMIT_S).stdout)

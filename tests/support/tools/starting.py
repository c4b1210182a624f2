"""The time until the plugin listens: its limit, and what is the fault of other programs."""

import resource
import subprocess
import sys
from pathlib import Path

# The goal on an idle machine. An engine then looks for the socket for the first time:
# pluginPostStart() in plugin/manager_linux.go of moby.
GOAL_S = 0.5
# An idle machine needs 12 ms of processor time for a bare interpreter. On a slower machine, or one
# whose processors share caches with other programs, the limit is as many of these.
INTERPRETERS = 40
STARTS = 5
_DEADLINE_S = 60.0


def limit_s() -> float:
    """Return the goal, or more if this machine is slow now."""
    begun = _children_s()
    subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], timeout=_DEADLINE_S, check=True)
    return max(GOAL_S, INTERPRETERS * (_children_s() - begun))


def waited_s(pid: int) -> float:
    """Return how long the main thread has waited for a processor, schedstat in proc(5)."""
    _, waited_ns, _ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
    return int(waited_ns) / 1e9


def _children_s() -> float:
    """Return the processor time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

"""A limit of threads for one process and those that it makes, by the pids controller of cgroups."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")


@contextlib.contextmanager
def threads_limited(pid: int, more: int) -> Iterator[None]:
    """Allow process *pid* at most *more* additional threads during the block."""
    top = _controller()
    own = top / f"passfs-test-{os.getpid()}"
    before = top / _cgroup_of(pid, top)
    own.mkdir()
    try:
        (own / "cgroup.procs").write_text(str(pid))
        (own / "pids.max").write_text(str(int((own / "pids.current").read_text()) + more))
        yield
    finally:
        (own / "pids.max").write_text("max")
        while members := (own / "cgroup.procs").read_text().split():
            for member in members:
                with contextlib.suppress(ProcessLookupError):
                    (before / "cgroup.procs").write_text(member)
        own.rmdir()


def _controller() -> Path:
    """Return the directory of cgroups with a pids controller."""
    for line in MOUNTS.read_text().splitlines():
        own, _, more = line.partition(" - ")
        top, (kind, _, options) = Path(own.split()[4]), more.split()
        if kind == "cgroup" and "pids" in options.split(","):
            return top
        if kind == "cgroup2" and "pids" in (top / "cgroup.controllers").read_text().split():
            (top / "cgroup.subtree_control").write_text("+pids")
            return top
    raise LookupError("no pids controller of cgroups is mounted here")


def _cgroup_of(pid: int, top: Path) -> str:
    """Return the path of the cgroup of process *pid*, relative to *top*."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    found = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    version_2 = (top / "cgroup.controllers").exists()
    return found["" if version_2 else "pids"].lstrip("/")

"""The memory of workers and guards, which share most of theirs with the fork server."""

import os
import signal
from pathlib import Path

import pytest
import trio

from tests.support.fakes.dockerd import Dockerd, plugin
from tests.support.tools.processes import members

# The goal is 6 MiB (PSS) for an idle volume beside 99 others. Half a MiB is left for its part of
# what all workers share: some 22 MiB among 100 of them.
OWN_BYTES = 5 * 1024 * 1024 + 512 * 1024
GUARD_BYTES = 2 * 1024 * 1024
LIMIT_S = 30.0


def own_bytes(pid: int, kind: str = "Private_") -> int:
    """Return the memory that no other process has, proc_pid_smaps(5)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


async def worker_of(dockerd: Dockerd, name: str, before: int = 0) -> int:
    """Wait until a worker other than *before* serves a volume, and return its process id."""
    with trio.fail_after(LIMIT_S):
        while (pid := int((await dockerd.volume(name))["Status"]["worker_pid"])) in {0, before}:
            pass
    return pid


@pytest.mark.parametrize("session", ["kernel", "libfuse"])
async def test_an_idle_worker_has_little_memory_of_its_own(tmp_path: Path, session: str) -> None:
    async with plugin(tmp_path) as dockerd:
        for name in ("one", "two"):
            await dockerd.do("Create", Name=name, Opts={"session": session})
            await dockerd.do("Mount", Name=name, ID="a")
        # While both workers live: the last one has the pages of libraries to itself.
        pids = [(await dockerd.volume(name))["Status"]["worker_pid"] for name in ("one", "two")]
        sizes = [own_bytes(pid) for pid in pids]
        for name in ("one", "two"):
            await dockerd.do("Unmount", Name=name, ID="a")

    assert max(sizes) <= OWN_BYTES


@pytest.mark.logs("worker [0-9]+ was killed by SIGKILL")
@pytest.mark.logs("worker [0-9]+ took over after")
async def test_a_guard_has_little_memory_of_its_own(tmp_path: Path) -> None:
    """Also after it has made workers."""
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol", Opts={"session": "kernel"})
        await dockerd.do("Mount", Name="vol", ID="a")
        worker = await worker_of(dockerd, "vol")
        for _ in range(3):
            os.kill(worker, signal.SIGKILL)
            worker = await worker_of(dockerd, "vol", before=worker)
        while len(members(worker)) < 3:  # the second guard follows
            await trio.lowlevel.checkpoint()
        guards = members(worker) - {worker}
        sizes = [own_bytes(guard, "Private_Dirty") for guard in guards]
        await dockerd.do("Unmount", Name="vol", ID="a")

    assert len(sizes) == 2
    assert max(sizes) <= GUARD_BYTES

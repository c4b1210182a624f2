"""Many more files than descriptors: a walk succeeds, and then the worker's memory shrinks again.

There are 100,000 files. PASSFS_MANY_FILES=1000000 in the environment makes a million, which takes
ten times as long and 3 GB of the kernel's memory. The test prints the figures.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tools.mounted import Mounted, mounted
from tests.support.tools.mounts import forget

FILES = int(os.environ.get("PASSFS_MANY_FILES", "100000"))
# As many as one BATCH_FORGET may name, so that every buffer has had its full size before.
FIRST_FILES = 70_000
ROUNDS = 3
# Some memory stays: allocators return whole pages, and one object keeps its page.
KEPT = 1.10
DIRECTORIES = 100
DESCRIPTORS = 1024
LIMIT_S = 60 + FILES / 2000
POLL_S = 0.5


@pytest.fixture
def base() -> Iterator[Path]:
    """Return a directory in memory, because a disk would take long to make the files."""
    path = Path(tempfile.mkdtemp(prefix="passfs-many-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def make_files(top: Path, count: int) -> None:
    top.mkdir(exist_ok=True)
    for directory in range(DIRECTORIES):
        fd = os.open(top, os.O_PATH)
        os.mkdir(str(directory), dir_fd=fd)
        os.close(fd)
        fd = os.open(top / str(directory), os.O_PATH)
        for file in range(count // DIRECTORIES):
            os.mknod(f"file-{file}", dir_fd=fd)
        os.close(fd)


def memory(served: Mounted) -> int:
    """Return the resident memory of the worker in bytes."""
    for line in Path(f"/proc/{served.worker_pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise LookupError(served.worker_pid)


def descriptors(served: Mounted) -> int:
    return len(os.listdir(f"/proc/{served.worker_pid}/fd"))


def find(top: Path) -> int:
    """Walk through *top* with find(1), which reads the attributes of each file; count the files."""
    words = ["find", str(top), "-type", "f", "-size", "0", "-printf", "%i\n"]
    numbers = subprocess.run(words, check=True, stdout=subprocess.PIPE, timeout=LIMIT_S).stdout
    return len(set(numbers.split()))


@pytest.mark.slow
@pytest.mark.timeout(2 * (1 + ROUNDS) * LIMIT_S)
@pytest.mark.parametrize("session", ["kernel", "libfuse"])
def test_a_walk_over_more_files_than_descriptors(base: Path, session: str) -> None:
    """Each time the kernel forgets the files, the worker frees its memory for them."""
    options = {"cache": "always", "session": session}
    with mounted(base, options, DESCRIPTORS) as served:
        make_files(served.source / "first", FIRST_FILES)
        make_files(served.source / "many", FILES)
        fresh = memory(served)
        walk(served, "first", FIRST_FILES)
        before = settled(served)
        during, after = [], []
        for _ in range(ROUNDS):
            walk(served, "many", FILES)
            assert descriptors(served) < DESCRIPTORS
            during.append(memory(served))
            after.append(settled(served))

        figures = {"fresh": fresh, "before": before, "during": during, "after": after}
        sys.stderr.write(f"{FILES} files, bytes of the worker's memory: {figures}\n")
        assert max(during) > KEPT * before  # the worker had inodes for the files
        assert statistics.median(after) <= KEPT * before


def walk(served: Mounted, name: str, count: int) -> None:
    """Walk below the mount; abort the connection after LIMIT_S."""
    with served.limited(LIMIT_S):
        assert find(served.mountpoint / name) == count


def settled(served: Mounted) -> int:
    """Return the worker's memory, in bytes, after the kernel has forgotten all inodes.

    FORGET has no reply to wait for, and the kernel drops its inodes in several passes.
    """
    deadline = time.monotonic() + LIMIT_S
    spent = -1
    while time.monotonic() < deadline and spent != (spent := cpu_ticks(served)):
        forget(served.mountpoint)
        time.sleep(POLL_S)
    return memory(served)


def cpu_ticks(served: Mounted) -> int:
    """Return the processor time of the worker in ticks."""
    fields = Path(f"/proc/{served.worker_pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])

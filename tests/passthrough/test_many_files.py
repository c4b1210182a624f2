"""Many more files than descriptors: a walk goes through, and the worker's memory comes back.

Served as the plugin's worker is, with the C library's allocator. A hundred thousand files; a
million with PASSFS_MANY_FILES=1000000 in the environment.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.config import Config, InodeFileHandles
from passthrough.filesystem import PassthroughFs
from passthrough.inodes import ROOT
from tests.support.mounted import Mounted, mounted

FILES = int(os.environ.get("PASSFS_MANY_FILES", "100000"))
DIRECTORIES = 100
DESCRIPTORS = 1024
LIMIT_S = 30 + FILES / 2000
POLL_S = 0.2


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory in memory: what is to be tested is not how fast a disk makes files."""
    path = Path(tempfile.mkdtemp(prefix="passfs-many-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def make_files(top: Path, count: int) -> None:
    for directory in range(DIRECTORIES):
        fd = os.open(top, os.O_PATH)
        os.mkdir(str(directory), dir_fd=fd)
        os.close(fd)
        fd = os.open(top / str(directory), os.O_PATH)
        for file in range(count // DIRECTORIES):
            os.mknod(f"file-{file}", dir_fd=fd)
        os.close(fd)


def memory(served: Mounted) -> int:
    """The memory of the worker that is resident, in bytes."""
    for line in Path(f"/proc/{served.worker_pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise LookupError(served.worker_pid)


def descriptors(served: Mounted) -> int:
    return len(os.listdir(f"/proc/{served.worker_pid}/fd"))


def find(top: Path) -> int:
    """Walk through *top* as find(1) does, with the attributes of each file; count the files."""
    words = ["find", str(top), "-type", "f", "-size", "0", "-printf", "%i\n"]
    numbers = subprocess.run(words, check=True, stdout=subprocess.PIPE, timeout=LIMIT_S).stdout
    return len(set(numbers.split()))


@pytest.mark.timeout(2 * LIMIT_S + 120)
def test_a_walk_over_more_files_than_descriptors(base: Path) -> None:
    """And when the kernel has forgotten them, so has the worker."""
    with mounted(base, {"cache": "always"}, DESCRIPTORS) as served:
        (served.source / "few").mkdir()
        make_files(served.source / "few", DIRECTORIES)
        with served.limited(LIMIT_S):
            assert find(served.mountpoint / "few") == DIRECTORIES
        forget_all()
        before = memory(served)
        (served.source / "many").mkdir()
        make_files(served.source / "many", FILES)

        with served.limited(LIMIT_S):
            assert find(served.mountpoint / "many") == FILES

        assert descriptors(served) < DESCRIPTORS
        assert memory(served) > before + FILES * 100  # they were known
        deadline = time.monotonic() + LIMIT_S
        while memory(served) > before * 1.1 and time.monotonic() < deadline:
            forget_all()
            time.sleep(POLL_S)  # FORGET has no answer to wait for
            find(served.mountpoint / "few")  # a worker that sleeps gives nothing back
        assert memory(served) <= before * 1.1


def forget_all() -> None:
    """Make the kernel drop every dentry and inode that nobody uses: it sends FORGET for each."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2\n")


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("handles", InodeFileHandles)
def test_what_was_looked_up_and_forgotten_leaves_nothing(
    base: Path, handles: InodeFileHandles
) -> None:
    files = min(FILES, 5_000) if handles is InodeFileHandles.NEVER else FILES
    make_files(base, files)
    fs = PassthroughFs(Config(inode_file_handles=handles), os.open(base, os.O_PATH))
    numbers = []
    for directory in range(DIRECTORIES):
        parent = fs.lookup(ROOT, b"%d" % directory).inode_number
        numbers.append(parent)
        for file in range(files // DIRECTORIES):
            entry = fs.lookup(parent, b"file-%d" % file)
            numbers.append(entry.inode_number)
    table = fs.inodes

    assert len(set(numbers)) == files + DIRECTORIES
    assert len(table) == 1 + files + DIRECTORIES
    for number in numbers:
        fs.forget(number, 1)
    assert len(table) == 1
    # The dictionaries themselves are small again, which they are not by themselves.
    assert table._by_number.__sizeof__() < 1_000_000
    assert table._by_identity.__sizeof__() < 1_000_000
    fs.close()

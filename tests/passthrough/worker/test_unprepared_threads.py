"""A successor fails to prepare a thread, and loses no request that the thread was to resume.

A library before the C library has unshare(2) fail, once, in one thread of a process. The library
also holds writes.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.options.choices import Locks, Passthrough, Sandbox, SessionKind, Standby
from passthrough.options.table import Requested
from passthrough.worker import fuse_mount
from tests.passthrough.worker.test_standby import kill
from tests.support.fakes.keeper import LIMIT_S, Keeper, on_mount
from tests.support.tools.processes import threads, wait_until

pytestmark = pytest.mark.full

LIBRARY = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

static int threads_before(void)
{
    int before = 0;
    struct dirent *task;
    DIR *tasks = opendir("/proc/self/task");
    while (tasks && (task = readdir(tasks)))
        before += atoi(task->d_name) > getpid() && atoi(task->d_name) < gettid();
    if (tasks)
        closedir(tasks);
    return before;
}

static int is_to_fail(void)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s.%d", getenv("UNSHARE_FAILS"), threads_before());
    return gettid() != getpid() && unlink(path) == 0;
}

int unshare(int flags)
{
    int (*actual)(int) = (int (*)(int))dlsym(RTLD_NEXT, "unshare");
    if (flags == CLONE_FS && is_to_fail()) {
        errno = ENOMEM;
        return -1;
    }
    return actual(flags);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset)
{
    ssize_t (*actual)(int, const void *, size_t, off_t) =
        (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64");
    if (size == SIZE && access(getenv("WRITES_WAIT"), F_OK) == 0) {
        prctl(PR_SET_NAME, "held");
        while (access(getenv("WRITES_WAIT"), F_OK) == 0)
            usleep(1000);
    }
    return actual(fd, data, size, offset);
}
"""
SIZE = 128 << 10  # of a held write, in bytes
WRITES = 4
CONFIG = Requested(
    session=SessionKind.KERNEL,
    standby=Standby.ON,
    sandbox=Sandbox.NONE,
    locks=Locks.HOST,
    passthrough=Passthrough.OFF,
)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of two files that a test makes.

    `fails.N`: the next thread with N threads before it cannot be prepared, and removes the file.
    `holds`: while there is this file, writes of SIZE wait.
    """
    path = tmp_path / "library.so"
    words = ["gcc", "-shared", "-fPIC", f"-DSIZE={SIZE}", "-x", "c", "-", "-o", str(path), "-ldl"]
    subprocess.run(words, input=LIBRARY, text=True, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(path))
    monkeypatch.setenv("UNSHARE_FAILS", str(tmp_path / "fails"))
    monkeypatch.setenv("WRITES_WAIT", str(tmp_path / "holds"))
    return tmp_path


@pytest.fixture
def keeper(library: Path, source: Path, mountpoint: Path) -> Iterator[Keeper]:
    (source / "file").touch()
    keeper = Keeper(source, mountpoint, library / "stderr", CONFIG)
    keeper.serve()
    wait_until(lambda: len(keeper.state.guard_pids) == 2)
    yield keeper
    keeper.close()


def locking(file: Path, *words: str) -> "subprocess.Popen[bytes]":
    """Run a program with a lock on *file*."""
    return subprocess.Popen(["flock", file, *words], stdin=subprocess.PIPE)


def is_locked(file: Path) -> bool:
    return subprocess.run(["flock", "-n", file, "true"], check=False).returncode == 1


def has_a_waiting_lock(worker: int) -> bool:
    """Return whether a thread of the worker waits for a lock of the host."""
    return any("locks_lock_inode_wait" in stack for stack in threads(worker, "stack").values())


def test_a_request_in_hand_outlives_a_thread_that_cannot_be_prepared(
    keeper: Keeper, mountpoint: Path, library: Path
) -> None:
    file, fails = mountpoint / "file", library / "fails.0"
    with locking(file, "cat") as holder:
        wait_until(lambda: is_locked(file))
        with locking(file, "true") as waiter:
            wait_until(lambda: has_a_waiting_lock(keeper.state.worker_pid))
            fails.touch()
            kill(keeper.state.worker_pid)
            wait_until(lambda: not fails.exists())
            on_mount("stat", str(mountpoint))
            holder.communicate()

            try:
                assert waiter.wait(LIMIT_S) == 0
            finally:
                if waiter.poll() is None:
                    fuse_mount.unmount(mountpoint, abort=True)
    assert "cannot take over" in keeper.log.read_text()


def writing(file: Path, data: bytes) -> "subprocess.Popen[bytes]":
    """Run a program that writes *data* to a file by one write(2)."""
    words = ["dd", f"of={file}", f"bs={len(data)}", "iflag=fullblock", "status=none"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.close()
    return process


def held_writes(pid: int) -> int:
    """Return how many threads of a process have a write that waits."""
    held = 0
    for task in Path(f"/proc/{pid}/task").glob("*/comm"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            held += task.read_text() == "held\n"
    return held


def test_a_write_in_hand_keeps_its_data_beside_a_thread_that_cannot_be_prepared(
    keeper: Keeper, source: Path, mountpoint: Path, library: Path
) -> None:
    """The third request in hand has a slot behind those of the two readers."""
    fails, holds = library / "fails.2", library / "holds"
    written = {f"file{n}": bytes([n]) * SIZE for n in range(1, WRITES + 1)}
    holds.touch()
    writers = [writing(mountpoint / name, data) for name, data in written.items()]
    try:
        wait_until(lambda: held_writes(keeper.state.worker_pid) == WRITES)
        fails.touch()
        kill(keeper.state.worker_pid)
        wait_until(lambda: not fails.exists())
        wait_until(lambda: held_writes(keeper.state.worker_pid) == WRITES)
        holds.unlink()

        assert [writer.wait(LIMIT_S) for writer in writers] == [0] * WRITES
    finally:
        if any(writer.poll() is None for writer in writers):
            fuse_mount.unmount(mountpoint, abort=True)
    assert "cannot take over" in keeper.log.read_text()
    for name, data in written.items():
        assert (source / name).read_bytes() == data, name

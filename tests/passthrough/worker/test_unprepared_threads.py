"""A successor whose thread cannot be prepared: the request that it resumes is not lost.

A library before the C library has unshare(2) fail, once, in the first thread of a process.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.options.choices import Locks, Sandbox, SessionKind, Standby
from passthrough.options.table import Requested
from passthrough.worker import fuse_mount
from tests.passthrough.worker.test_standby import kill
from tests.support.fakes.keeper import LIMIT_S, Keeper, on_mount
from tests.support.tools.processes import wait_until

pytestmark = pytest.mark.full

LIBRARY = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

static int is_first_thread(void)
{
    int before = 0;
    struct dirent *task;
    DIR *tasks = opendir("/proc/self/task");
    while (tasks && (task = readdir(tasks)))
        before += atoi(task->d_name) > getpid() && atoi(task->d_name) < gettid();
    if (tasks)
        closedir(tasks);
    return gettid() != getpid() && before == 0;
}

int unshare(int flags)
{
    int (*actual)(int) = (int (*)(int))dlsym(RTLD_NEXT, "unshare");
    if (flags == CLONE_FS && is_first_thread() && unlink(getenv("UNSHARE_FAILS")) == 0) {
        errno = ENOMEM;
        return -1;
    }
    return actual(flags);
}
"""
CONFIG = Requested(
    session=SessionKind.KERNEL, standby=Standby.ON, sandbox=Sandbox.NONE, locks=Locks.HOST
)


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path: while there is a file, the next first thread of a worker cannot be prepared."""
    path, library = tmp_path / "fails", tmp_path / "unshare.so"
    words = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(words, input=LIBRARY, text=True, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("UNSHARE_FAILS", str(path))
    return path


@pytest.fixture
def keeper(fails: Path, source: Path, mountpoint: Path, tmp_path: Path) -> Iterator[Keeper]:
    assert not fails.exists()
    (source / "file").touch()
    keeper = Keeper(source, mountpoint, tmp_path / "stderr", CONFIG)
    keeper.serve()
    wait_until(lambda: len(keeper.state.guard_pids) == 2)
    yield keeper
    keeper.close()


def locking(file: Path, *words: str) -> "subprocess.Popen[bytes]":
    """Run a program with a lock on *file*."""
    return subprocess.Popen(["flock", file, *words], stdin=subprocess.PIPE)


def is_locked(file: Path) -> bool:
    return subprocess.run(["flock", "-n", file, "true"], check=False).returncode == 1


def waits(process: subprocess.Popen[bytes]) -> bool:
    return "fuse" in Path(f"/proc/{process.pid}/stack").read_text()


def test_a_request_in_hand_outlives_a_thread_that_cannot_be_prepared(
    keeper: Keeper, mountpoint: Path, fails: Path
) -> None:
    file = mountpoint / "file"
    with locking(file, "cat") as holder:
        wait_until(lambda: is_locked(file))
        with locking(file, "true") as waiter:
            wait_until(lambda: waits(waiter))
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

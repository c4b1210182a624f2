"""Real systemd with the real units, in namespaces of its own: as a manager of a user, who is root.

A user's manager is the same program as a machine's and leaves the machine alone. It wants a tree of
cgroups, which it is given a branch of, and a machine that systemd has booted, which it is told.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from tests.support.tools.driver import SOCKET, UNIT
from tests.support.tools.processes import children

LIMIT_S = 30.0

# Process 1 of its namespace: when it is killed, everything in it is. $1 is the branch of cgroups.
SETUP = """
mount -t cgroup2 none /sys/fs/cgroup
mkdir "/sys/fs/cgroup/$1"
echo 1 > "/sys/fs/cgroup/$1/cgroup.procs"
mount -t tmpfs none /run
mkdir -p /run/systemd/system
/lib/systemd/systemd --user
"""
CLEAR = """
mount -t cgroup2 none /sys/fs/cgroup
find "/sys/fs/cgroup/$1" -depth -type d -exec rmdir {} +
"""


class Systemd:
    """A service manager that knows passfs.service and passfs.socket; a context manager."""

    def __init__(self, directory: Path) -> None:
        """Have all that is the service's own lie below *directory*."""
        self._directory = directory
        self._branch = f"passfs-test-{os.getpid()}"
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "XDG_CONFIG_HOME": str(directory / "config"),
        }
        units = directory / "config" / "systemd" / "user"
        units.mkdir(parents=True)
        (directory / "run").mkdir(mode=0o700)
        (units / UNIT.name).write_text(self._service())
        (units / SOCKET.name).write_text(
            _replaced(SOCKET.read_text(), ListenStream=str(directory / "p.sock"))
        )
        alone = _unshared("--pid", "--fork", "--kill-child", "--mount-proc")
        with (directory / "systemd.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*alone, SETUP, "sh", self._branch],
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        limit = time.monotonic() + LIMIT_S
        while not (directory / "run" / "systemd" / "private").exists():
            assert self._process.poll() is None, (directory / "systemd.log").read_text()
            assert time.monotonic() < limit, (directory / "systemd.log").read_text()
            time.sleep(0.02)
        (self._pid,) = children(self._process.pid)

    def inside(self, path: Path) -> Path:
        """Where *path* as the service sees it is to be found, with what is mounted there."""
        return Path(f"/proc/{self._pid}/root{path}")

    def control(self, *words: str) -> str:
        """Give a command of systemctl(1); fails with what it says."""
        entered = ["nsenter", f"--target={self._pid}", "--mount", "--pid"]
        done = subprocess.run(
            [*entered, "systemctl", "--user", *words],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def show(self, name: str) -> str:
        """A property of the service."""
        return self.control("show", "--value", f"--property={name}", UNIT.name).strip()

    def close(self) -> None:
        """End everything that it has started, and take its cgroups away."""
        self._process.kill()
        self._process.wait(LIMIT_S)
        while Path(f"/proc/{self._pid}").exists():  # which ends last in its namespace
            _reap(self._pid)
            time.sleep(0.01)
        subprocess.run([*_unshared(), CLEAR, "sh", self._branch], timeout=LIMIT_S, check=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _service(self) -> str:
        """The unit, with the programs and directories of this test in place of the machine's."""
        directory = self._directory
        own = {
            "PASSFS_DATA_DIR": directory / "data",
            "PASSFS_MOUNT_DIR": directory / "mounts",
            "PYTHONPATH": Path(__file__).parents[3],
        }
        return _replaced(
            UNIT.read_text(),
            ExecStart=f"{sys.executable} -m plugin serve",
            EnvironmentFile=f"-{directory}/absent\nEnvironment="
            + " ".join(f"{name}={value}" for name, value in own.items())
            + f"\nStandardOutput=append:{directory}/log\nStandardError=append:{directory}/log",
        )


def _unshared(*more: str) -> list[str]:
    return ["unshare", "--mount", "--propagation=private", *more, "sh", "-euc"]


def _replaced(unit: str, **settings: str) -> str:
    for name, value in settings.items():
        unit, count = re.subn(rf"^{name}=.*$", f"{name}={value}", unit, flags=re.MULTILINE)
        assert count == 1, name
    return unit


def _reap(pid: int) -> None:
    """Take note of the end of *pid*, if it has become our child, prctl(2)."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return

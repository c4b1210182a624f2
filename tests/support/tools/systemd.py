"""A real systemd with the real units, in namespaces of its own: as the manager of the user root.

The manager of a user is the same program as that of a machine, and does not change the machine. It
needs a cgroup of its own, and the directory /run/systemd/system, which says that systemd has booted
the machine.
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

# The shell is process 1 of its pid namespace: if it is killed, the kernel kills all processes in
# the namespace. $1 is the name of the cgroup.
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
    """A service manager with passfs.service and passfs.socket; a context manager."""

    def __init__(self, directory: Path) -> None:
        """Start systemd; all files of the service lie below *directory*."""
        self._directory = directory
        self._cgroup = f"passfs-test-{os.getpid()}"
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "XDG_CONFIG_HOME": str(directory / "config"),
        }
        units = directory / "config" / "systemd" / "user"
        units.mkdir(parents=True)
        (directory / "run").mkdir(mode=0o700)
        self.unit = units / UNIT.name
        self.unit.write_text(self._service())
        (units / SOCKET.name).write_text(
            _replaced(SOCKET.read_text(), ListenStream=str(directory / "p.sock"))
        )
        alone = _unshared("--pid", "--fork", "--kill-child", "--mount-proc")
        with (directory / "systemd.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*alone, SETUP, "sh", self._cgroup],
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
        """Return the path at which this process sees *path* of the service, with its mounts."""
        return Path(f"/proc/{self._pid}/root{path}")

    def control(self, *words: str) -> str:
        """Run systemctl(1) and return its output; fail with its errors."""
        return self.run("systemctl", "--user", *words)

    def run(self, *command: str, **environment: str) -> str:
        """Run *command* beside systemd and return its output; fail with its errors."""
        entered = ["nsenter", f"--target={self._pid}", "--mount", "--pid"]
        done = subprocess.run(
            [*entered, *command],
            env=self._environment | environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def show(self, name: str) -> str:
        """Return a property of the service."""
        return self.control("show", "--value", f"--property={name}", UNIT.name).strip()

    def close(self) -> None:
        """Kill all processes that it has started, and remove its cgroups."""
        self._process.kill()
        self._process.wait(LIMIT_S)
        while Path(f"/proc/{self._pid}").exists():  # process 1 ends last in its namespace
            _reap(self._pid)
            time.sleep(0.01)
        subprocess.run([*_unshared(), CLEAR, "sh", self._cgroup], timeout=LIMIT_S, check=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _service(self) -> str:
        """Return the unit with the programs and directories of this test."""
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
    """Wait for *pid* if it has become a child of this process: prctl(2)."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return

"""A clean installation of this machine's distribution, which runs with systemd as its process 1.

It has namespaces of its own except that of the network, by which apt reaches the mirror.
"""

import json
import os
import platform
import shutil
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

from plugin.commands.connection import Connection
from tests.support.tools.processes import children

LIMIT_S = 60.0
# The distribution and its packages come from the mirror.
DOWNLOAD_S = 400.0
SOCKET = Path("/run/docker/plugins/passfs.sock")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

# $1 is the root directory, $2 the name of the cgroup, which becomes the root of cgroups.
SETUP = """
mount -t cgroup2 none /sys/fs/cgroup
mkdir "/sys/fs/cgroup/$2"
echo $$ > "/sys/fs/cgroup/$2/cgroup.procs"
exec unshare --pid --fork --kill-child --cgroup --uts --ipc sh -euc "$3" sh "$1"
"""
# systemd wants a mount at /, and makes no devices in a container.
BOOT = """
mount --bind "$1" "$1"
cd "$1"
mount -t proc none proc
mount -t sysfs none sys
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs -o mode=755 none run
mount -t tmpfs -o mode=755 none dev
for name in null zero full random urandom tty fuse; do
    : > dev/$name
    mount --bind /dev/$name dev/$name
done
exec env -i PATH="$PATH" container=test chroot . /lib/systemd/systemd
"""
CLEAR = """
mount -t cgroup2 none /sys/fs/cgroup
find "/sys/fs/cgroup/$1" -depth -type d -exec rmdir {} +
"""


def install(root: Path) -> None:
    """Install the distribution in the directory *root*: apt, systemd, and what they need."""
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    command = ["mmdebstrap", "--quiet", "--variant=apt", "--include=systemd", release, str(root)]
    _run(command, DOWNLOAD_S)
    shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")


class Machine:
    """The running machine; a context manager."""

    def __init__(self, root: Path) -> None:
        """Boot the installation in the directory *root*."""
        self._cgroup = f"passfs-machine-{os.getpid()}"
        self._process = subprocess.Popen(
            [*_unshared(SETUP), str(root), self._cgroup, BOOT],
            env={"PATH": PATH},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._pid = 0
        limit = time.monotonic() + LIMIT_S
        try:
            while not self._runs():
                assert self._process.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.05)
        except BaseException:
            self.close()
            raise

    def inside(self, path: str | Path) -> Path:
        """Return the path at which this process sees *path* of the machine, with its mounts."""
        return Path(f"/proc/{self._pid}/root{path}")

    def run(self, *command: str, status: int = 0) -> str:
        """Run *command* in the machine; return its output and its errors."""
        return _run(self._entered(*command), DOWNLOAD_S, status)

    def call(self, path: str, **fields: object) -> Any:
        """Return the answer of the plugin to a request."""
        with closing(Connection(str(self.inside(SOCKET)), LIMIT_S)) as connection:
            connection.request("POST", f"/{path}", json.dumps(fields))
            answer = json.loads(connection.getresponse().read())
        assert not answer.get("Err"), answer
        return answer

    def close(self) -> None:
        """Kill process 1 and with it all others, and remove their cgroups."""
        self._process.kill()
        self._process.wait(LIMIT_S)
        while Path(f"/proc/{self._pid}").exists():
            _reap(self._pid)
            time.sleep(0.01)
        _run([*_unshared(CLEAR), self._cgroup], LIMIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _runs(self) -> bool:
        """Return whether the machine has booted."""
        if not self._pid:
            # Before that, the shell starts other processes.
            self._pid = next(filter(_is_first, children(self._process.pid)), 0)
            return False
        command = self._entered("systemctl", "is-system-running")
        done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=False)
        return done.stdout.strip() in {b"running", b"degraded"}

    def _entered(self, *command: str) -> list[str]:
        spaces = ("--mount", "--pid", "--cgroup", "--uts", "--ipc", "--root", "--wd")
        clean = ("env", "-i", f"PATH={PATH}", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
        return ["nsenter", f"--target={self._pid}", *spaces, *clean, *command]


def _is_first(pid: int) -> bool:
    """Return whether *pid* is process 1 of a pid namespace of its own."""
    with suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        numbers = next(line for line in lines if line.startswith("NSpid:")).split()[1:]
        return len(numbers) > 1 and numbers[-1] == "1"
    return False


def _unshared(script: str) -> list[str]:
    return ["unshare", "--mount", "--propagation=private", "sh", "-euc", script, "sh"]


def _run(command: list[str], limit_s: float, status: int = 0) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def _reap(pid: int) -> None:
    """Wait for *pid* if it has become a child of this process: prctl(2)."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return

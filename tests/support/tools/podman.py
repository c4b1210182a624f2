"""podman with storage of its own, and with `passfs serve` as a volume plugin."""

import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

IMAGE = "passfs-test-shell"
DRIVER = "passfs"
PROGRAMS = ("sh", "cat", "id", "sleep")
COMMAND_S = 60
# runc, which Docker needs anyway: crun does not support hybrid cgroup hierarchies. The limits are
# lower than podman's defaults, which podman may not set if its own limits are lower.
CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "none"

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"

[engine.volume_plugins]
{driver} = "{socket}"
"""


class Podman:
    """The command podman; all its files lie below *directory*."""

    def __init__(self, directory: Path, socket: Path) -> None:
        configuration = directory / "containers.conf"
        configuration.write_text(CONFIGURATION.format(driver=DRIVER, socket=socket))
        self._environment = os.environ | {"CONTAINERS_CONF": str(configuration)}
        self._own = [f"--root={directory}/storage", f"--runroot={directory}/run"]
        self._own += [f"--tmpdir={directory}/tmp", "--storage-driver=vfs"]

    def attempt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail; output and errors are one text."""
        return subprocess.run(
            ["podman", *self._own, *arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )

    def do(self, *arguments: str) -> str:
        """Return the output of a command; fail with the output if the command fails."""
        done = self.attempt(*arguments)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def refused(self, *arguments: str) -> str:
        """Return the output of a command that must fail."""
        done = self.attempt(*arguments)
        assert done.returncode != 0, done.stdout
        return done.stdout

    def create(self, name: str, **options: str) -> None:
        """Make a volume."""
        given = [f"--opt={option}={value}" for option, value in options.items()]
        assert self.do("volume", "create", f"--driver={DRIVER}", *given, name) == f"{name}\n"

    def inspect(self, name: str) -> dict[str, Any]:
        """Return podman's description of a volume, with the plugin's `Status`."""
        (volume,) = json.loads(self.do("volume", "inspect", name))
        return dict(volume)

    def volumes(self) -> set[str]:
        """Return the names of the volumes that podman lists."""
        return set(self.do("volume", "ls", "--quiet").split())

    def run(self, volume: str, command: str, *more: str, at: str = "/data") -> str:
        """Return the output of a shell in a new container with *volume*."""
        arguments = ["run", "--rm", f"--volume={volume}:{at}", *more, IMAGE]
        return self.do(*arguments, "sh", "-euc", command)

    def import_image(self, directory: Path) -> None:
        """Make IMAGE from programs of this machine and a directory `/seed` with a file."""
        tree = directory / "tree"
        for program in PROGRAMS:
            path = shutil.which(program)
            assert path is not None
            _copy(tree, f"/bin/{program}", path)
            needed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True)
            for library in re.findall(r"(/\S+) \(0x", needed.stdout):
                _copy(tree, library, library)
        (tree / "seed").mkdir()
        (tree / "seed" / "file").write_text("seeded\n")
        os.chown(tree / "seed" / "file", 1234, 2345)
        with tarfile.open(directory / "tree.tar", "w") as archive:
            archive.add(tree, arcname=".")
        self.do("import", str(directory / "tree.tar"), IMAGE)


def _copy(tree: Path, name: str, path: str) -> None:
    target = tree / name.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)

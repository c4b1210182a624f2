"""The driver under test in a real engine: its two installations, and requests of tests."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import docker
import docker.errors
from docker.models.containers import Container
from docker.models.volumes import Volume

from passthrough.linux import mountinfo
from passthrough.linux.mountinfo import FSTYPE
from tests.support.fakes.service_manager import ServiceManager
from tests.support.tools.service import RUN

TOOLS_IMAGE = "passfs-test-tools"
# The same in each run, because an engine remembers the name of each socket that it has found.
HOST_NAME = "passfs-host-test"
# The installations in a test's own engine; those above are in the machine's engine.
OWN_NAME = "passfs-own"
OWN_HOST_NAME = "passfs-own-host-test"
BASE_IMAGE = "debian:trixie-slim"
# The first install builds an image; later ones find each layer in the engine's cache.
INSTALL_S = 900
STOP_S = 10
UNIT = Path(__file__).parents[3] / "packaging" / "passfs.service"
SOCKET = UNIT.with_suffix(".socket")
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
CONNECTION_ENDED = ("not connected", "connection abort")
"""Programs print one of these after the end of a connection: the second if a call was waiting."""
# Builds on this machine may use its trust store.
TRUST = ["--ca-bundle", str(CA_BUNDLE)] if CA_BUNDLE.exists() else []


@dataclass
class Driver:
    """A volume driver of the engine, and its data directory on this host."""

    client: docker.DockerClient
    name: str
    data_dir: Path
    restart: Callable[[], None]
    """Stop the plugin and start it again, as an administrator would."""
    crash: Callable[[int], None]
    """Kill the plugin, given its process id on this host, and have it started again: by the engine,
    or as by a service manager."""
    upgrade: Callable[[str], None] | None = None
    """Restart the service with a program of that identity; None for a managed plugin."""

    def own_directory(self, volume: Volume) -> Path:
        """Return the directory of a volume without a source."""
        return self.data_dir / "volumes" / str(volume.name)

    @contextlib.contextmanager
    def volume(self, **options: str) -> Iterator[Volume]:
        """Create a volume with a unique name, and remove it at the end."""
        volume = self.client.volumes.create(
            f"t-{uuid.uuid4().hex[:12]}", driver=self.name, driver_opts=options
        )
        try:
            yield volume
        finally:
            with contextlib.suppress(docker.errors.NotFound):
                self.client.api.remove_volume(volume.name)

    def run(
        self, volume: Volume, command: str, *, mode: str = "rw", at: str = "/data", **more: Any
    ) -> str:
        """Return the output of a shell in a new container with *volume*; raise if it fails."""
        output = self.client.containers.run(
            TOOLS_IMAGE,
            ["sh", "-euc", command],
            volumes={volume.name: {"bind": at, "mode": mode}},
            remove=True,
            stderr=True,
            network_mode="none",
            **more,
        )
        return bytes(output).decode()

    @contextlib.contextmanager
    def container(self, volume: Volume, *, at: str = "/data", **more: Any) -> Iterator[Container]:
        """Run a container that sleeps with *volume* mounted, and remove it at the end."""
        container = self.client.containers.run(
            TOOLS_IMAGE,
            ["sleep", "infinity"],
            volumes={volume.name: {"bind": at, "mode": "rw"}},
            detach=True,
            init=True,
            network_mode="none",
            **more,
        )
        try:
            yield container
        finally:
            container.remove(force=True)

    def status(self, volume: Volume) -> dict[str, Any]:
        """Return the Status in `docker volume inspect`."""
        return dict(self.client.api.inspect_volume(volume.name)["Status"])

    def file_systems(self, volume: Volume) -> set[int]:
        """Return the FUSE file systems that are mounted for *volume* on the host, as st_dev.

        If the host's root is a shared mount, a file system of a managed plugin has two entries in
        mountinfo, one hidden under the other. The engine binds the plugin's mount directory to
        itself, and both ends of this bind receive the mounts in it.
        """
        ending = b"/" + str(volume.name).encode()
        return {
            mount.device
            for mount in mountinfo.read()
            if mount.fstype == FSTYPE and mount.target.endswith(ending)
        }

    def mountpoint(self, volume: Volume) -> str:
        """Return the mount point of *volume* on the host."""
        ending = b"/" + str(volume.name).encode()
        return next(
            mount.target.decode()
            for mount in mountinfo.read()
            if mount.fstype == FSTYPE and mount.target.endswith(ending)
        )


def execute(container: Container, command: str, **more: Any) -> str:
    """Return the output of a shell in a running container; fail with the output."""
    code, text = outcome(container, command, **more)
    assert code == 0, text
    return text


def outcome(container: Container, command: str, **more: Any) -> tuple[int, str]:
    """Return the exit status and the output of a shell in a running container.

    Under load, an engine may lose the output of a command that ends at once. So the shell lingers.
    """
    script = f"trap 'sleep 0.1' EXIT\n{command}"
    code, output = container.exec_run(["sh", "-euc", script], **more)
    return code, bytes(output).decode(errors="replace")


def passfs(*arguments: str, timeout_s: float = INSTALL_S) -> str:
    """Run the `passfs` command and return its output; fail with output and errors."""
    done = subprocess.run(
        [sys.executable, "-m", "plugin", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def managed(client: docker.DockerClient, directory: Path) -> Iterator[Driver]:
    """Install the managed plugin by `passfs install` under a unique name, and remove it."""
    name = f"passfs-test-{uuid.uuid4().hex[:8]}:latest"
    try:
        short = name.removesuffix(":latest")
        passfs("install", "--name", short, "--data-dir", str(directory / "data"), *TRUST)
        yield _managed_driver(client, name, directory / "data")
    finally:
        with contextlib.suppress(docker.errors.NotFound):
            client.plugins.get(name).remove(force=True)


@contextlib.contextmanager
def created(
    client: docker.DockerClient,
    directory: Path,
    tree: Path,
    name: str = OWN_NAME,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Driver]:
    """Make the managed plugin from *tree* (config.json and rootfs), and remove it."""
    data_dir = directory / "data"
    data_dir.mkdir(exist_ok=True)
    client.api.create_plugin(name, str(tree))
    try:
        client.api.configure_plugin(name, {**settings, "data.source": str(data_dir)})
        client.api.enable_plugin(name, timeout=0)
        yield _managed_driver(client, f"{name}:latest", data_dir)
    finally:
        client.plugins.get(name).remove(force=True)


def _managed_driver(client: docker.DockerClient, name: str, data_dir: Path) -> Driver:
    restart = partial(_disable_and_enable, client, name)
    return Driver(client, name, data_dir, restart, lambda pid: os.kill(pid, signal.SIGKILL))


def _disable_and_enable(client: docker.DockerClient, name: str) -> None:
    plugin = client.plugins.get(name)
    plugin.disable(force=True)
    plugin.enable()


def host_socket(name: str) -> Path:
    """Return the socket by which engines find the service *name* on this host."""
    return Path(f"/run/docker/plugins/{name}.sock")


@contextlib.contextmanager
def on_host(
    client: docker.DockerClient, directory: Path, name: str = HOST_NAME
) -> Iterator[Driver]:
    """Run `passfs serve` on this host, with its socket in the engine's plugin directory."""
    service = Service(host_socket(name), directory)

    def restart() -> None:
        service.restart()

    service.start()
    try:
        yield Driver(client, name, directory / "data", restart, service.crash, service.upgrade)
    finally:
        service.stop()


def unit(setting: str, file: Path = UNIT) -> list[str]:
    """Return the words of a setting in a systemd unit."""
    values = re.findall(rf"^{setting}=(.*)$", file.read_text(), re.MULTILINE)
    return [word for value in values for word in value.split()]


def restricted() -> list[str]:
    """Return a command that executes another one, which follows, with the unit's capabilities."""
    names = [name.removeprefix("CAP_").lower() for name in unit("CapabilityBoundingSet")]
    bounding_set = ",".join(["-all", *(f"+{name}" for name in names)])
    return ["setpriv", "--no-new-privs", f"--bounding-set={bounding_set}"]


class Service:
    """A `passfs serve` process with the unit's capabilities and no others.

    In place of systemd, support/fakes/service_manager.py listens, and stores descriptors while the
    service restarts.
    """

    def __init__(self, socket: Path, directory: Path) -> None:
        self._socket = socket
        self._log = directory / "serve.log"
        self._environment = os.environ | {
            "PASSFS_SOCKET": str(socket),
            "PASSFS_DATA_DIR": str(directory / "data"),
            "PASSFS_MOUNT_DIR": str(directory / "mounts"),
        }
        self._manager: ServiceManager | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the service, and wait until it reports that it is ready."""
        assert self._manager is None
        self._manager = ServiceManager(self._log.parent, self._socket)
        self._begin(self._manager)

    def restart(self) -> None:
        """Restart the service; the manager keeps its descriptors."""
        assert self._manager is not None
        self._end()
        self._begin(self._manager)

    def upgrade(self, program: str) -> None:
        """Restart the service with a program that differs from others by its identity alone."""
        self._environment["PROGRAM"] = program
        self.restart()

    def crash(self, pid: int) -> None:
        """Kill the service, which is process *pid*, and start it again as its manager does."""
        assert self._manager is not None
        assert self._process is not None
        assert self._process.pid == pid
        self._process.kill()
        self._process.wait(STOP_S)
        self._begin(self._manager)

    def stop(self) -> None:
        """Stop the service and its manager: the socket is removed, and the workers end."""
        assert self._manager is not None
        try:
            self._end()
        finally:
            self._manager.close()
            self._manager = None

        assert not self._socket.exists()

    def _begin(self, manager: ServiceManager) -> None:
        program = ["-c", RUN] if "PROGRAM" in self._environment else ["-m", "plugin", "serve"]
        with self._log.open("ab") as log:
            self._process = manager.start(
                [*restricted(), sys.executable, *program],
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        assert manager.wait_for_state("READY=1"), self._log.read_text()

    def _end(self) -> None:
        """Send SIGTERM, as a service manager does; the service must end within STOP_S, with 0."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(STOP_S)

        assert status == 0, self._log.read_text()

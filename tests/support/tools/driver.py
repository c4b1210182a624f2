"""The driver under test in a real engine: its two installations, and what tests ask of it."""

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
from tests.support.fakes.manager import Manager

TOOLS_IMAGE = "passfs-test-tools"
# The same in each run: an engine remembers every name whose socket it has ever found.
HOST_NAME = "passfs-host-test"
# In engines of a test's own: the installations beside the ones in the machine's engine.
OWN_NAME = "passfs-own"
OWN_HOST_NAME = "passfs-own-host-test"
BASE_IMAGE = "debian:trixie-slim"
# An install builds an image once, and later runs find every layer in the engine's cache.
INSTALL_S = 900
STOP_S = 10
UNIT = Path(__file__).parents[3] / "packaging" / "passfs.service"
SOCKET = UNIT.with_suffix(".socket")
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# What this machine trusts, the build of an image on it may trust.
TRUST = ["--ca-bundle", str(CA_BUNDLE)] if CA_BUNDLE.exists() else []


@dataclass
class Driver:
    """A volume driver that the engine knows, and where it keeps its data on this host."""

    client: docker.DockerClient
    name: str
    data_dir: Path
    restart: Callable[[], None]
    """Stop the plugin and start it again, as an administrator would."""

    def own_directory(self, volume: Volume) -> Path:
        """Where the files of a volume without a source lie."""
        return self.data_dir / "volumes" / str(volume.name)

    @contextlib.contextmanager
    def volume(self, **options: str) -> Iterator[Volume]:
        """A volume with a name of its own, removed at the end."""
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
        """What a shell in a fresh container with *volume* prints; raises if it fails."""
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
        """A container that sleeps with *volume* mounted, removed at the end."""
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
        """What `docker volume inspect` shows under Status."""
        return dict(self.client.api.inspect_volume(volume.name)["Status"])

    def file_systems(self, volume: Volume) -> set[int]:
        """The FUSE file systems that are mounted for *volume* on the host, as st_dev.

        One file system of a managed plugin has two places in mountinfo, one hidden under the
        other, where the host's root is a shared mount: the engine binds the plugin's directory
        of mounts to itself, and both ends of that bind receive what is mounted in it.
        """
        ending = b"/" + str(volume.name).encode()
        return {
            mount.device
            for mount in mountinfo.read()
            if mount.fstype == FSTYPE and mount.target.endswith(ending)
        }

    def mountpoint(self, volume: Volume) -> str:
        """Where the host sees *volume* mounted."""
        ending = b"/" + str(volume.name).encode()
        return next(
            mount.target.decode()
            for mount in mountinfo.read()
            if mount.fstype == FSTYPE and mount.target.endswith(ending)
        )


def execute(container: Container, command: str, **more: Any) -> str:
    """What a shell in a running container prints; fails with its output."""
    code, output = container.exec_run(["sh", "-euc", command], **more)
    text = bytes(output).decode(errors="replace")
    assert code == 0, text
    return text


def passfs(*arguments: str, timeout_s: float = INSTALL_S) -> str:
    """Run the `passfs` command as a user would; fails with its output."""
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
    """The managed plugin, installed by `passfs install` under a name of its own."""
    name = f"passfs-test-{uuid.uuid4().hex[:8]}:latest"
    try:
        short = name.removesuffix(":latest")
        passfs("install", "--name", short, "--data-dir", str(directory / "data"), *TRUST)
        yield Driver(client, name, directory / "data", partial(_off_and_on, client, name))
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
    """The managed plugin, made of *tree* (config.json and rootfs) in an engine of a test's own."""
    data_dir = directory / "data"
    data_dir.mkdir(exist_ok=True)
    client.api.create_plugin(name, str(tree))
    try:
        client.api.configure_plugin(name, {**settings, "data.source": str(data_dir)})
        client.api.enable_plugin(name, timeout=0)
        yield Driver(client, f"{name}:latest", data_dir, partial(_off_and_on, client, name))
    finally:
        client.plugins.get(name).remove(force=True)


def _off_and_on(client: docker.DockerClient, name: str) -> None:
    plugin = client.plugins.get(name)
    plugin.disable(force=True)
    plugin.enable()


def host_socket(name: str) -> Path:
    """Where engines look for the plugin *name* that this host runs."""
    return Path(f"/run/docker/plugins/{name}.sock")


@contextlib.contextmanager
def on_host(
    client: docker.DockerClient, directory: Path, name: str = HOST_NAME
) -> Iterator[Driver]:
    """`passfs serve` on this host, with its socket where the engine looks for plugins."""
    service = Service(host_socket(name), directory)

    def restart() -> None:
        service.restart()

    service.start()
    try:
        yield Driver(client, name, directory / "data", restart)
    finally:
        service.stop()


def unit(setting: str, file: Path = UNIT) -> list[str]:
    """The words of one setting of a systemd unit."""
    values = re.findall(rf"^{setting}=(.*)$", file.read_text(), re.MULTILINE)
    return [word for value in values for word in value.split()]


class Service:
    """A `passfs serve` process, as systemd runs it: with the unit's capabilities and no others.

    What systemd does for it by the units, support/fakes/manager.py does: it listens, and keeps
    descriptors while the service restarts.
    """

    def __init__(self, socket: Path, directory: Path) -> None:
        self._socket = socket
        self._log = directory / "serve.log"
        self._environment = os.environ | {
            "PASSFS_SOCKET": str(socket),
            "PASSFS_DATA_DIR": str(directory / "data"),
            "PASSFS_MOUNT_DIR": str(directory / "mounts"),
        }
        self._manager: Manager | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it says that requests are answered."""
        assert self._manager is None
        self._manager = Manager(self._log.parent, self._socket)
        self._begin(self._manager)

    def restart(self) -> None:
        """End it and begin it anew, without giving up what is kept for it."""
        assert self._manager is not None
        self._end()
        self._begin(self._manager)

    def stop(self) -> None:
        """End it for good; its socket goes, and workers that still serve somebody end."""
        assert self._manager is not None
        try:
            self._end()
        finally:
            self._manager.close()
            self._manager = None

        assert not self._socket.exists()

    def _begin(self, manager: Manager) -> None:
        names = [name.removeprefix("CAP_").lower() for name in unit("CapabilityBoundingSet")]
        bounding_set = ",".join(["-all", *(f"+{name}" for name in names)])
        restricted = ["setpriv", "--no-new-privs", f"--bounding-set={bounding_set}"]
        with self._log.open("ab") as log:
            self._process = manager.start(
                [*restricted, sys.executable, "-m", "plugin", "serve"],
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        assert manager.hears("READY=1"), self._log.read_text()

    def _end(self) -> None:
        """End it as a service manager does; it must be quick and clean."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(STOP_S)

        assert status == 0, self._log.read_text()

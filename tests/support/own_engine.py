"""A Docker engine of a test's own, which is stopped, killed and started again as the test likes.

It has a network of its own, because an engine takes the bridge of any other for its own. Nothing of
it lies outside of its directory but for what all engines of a machine share: /run/docker/plugins,
with the sockets of services and, named by ids, those of managed plugins.
"""

import contextlib
import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors

from passthrough import mountinfo, syscalls
from tests.support.driver import TOOLS_IMAGE
from tests.support.processes import children, end, reap

BUSYBOX = Path("/bin/busybox")
APPLETS = ("cat", "echo", "grep", "hostname", "id", "ls", "sh", "sleep", "touch", "true")
START_S = 60
STOP_S = 60


class OwnEngine:
    """A dockerd below one directory; made by `own_engine`."""

    def __init__(self, directory: Path, network: int) -> None:
        """Name an engine that does not run yet, for the network of the process *network*."""
        self.directory = directory
        self.network = network
        self.log = directory / "log"
        self.live_restore = False
        """Whether it was last started to leave containers running when it ends."""
        self._socket = directory / "s"
        self._process: subprocess.Popen[bytes] | None = None
        self._client: docker.DockerClient | None = None

    @property
    def address(self) -> str:
        """What DOCKER_HOST is to be for a command that talks to it."""
        return f"unix://{self._socket}"

    @property
    def client(self) -> docker.DockerClient:
        """Its client, which outlives its ends; closed with it."""
        assert self._client is not None
        return self._client

    def start(self, *, live_restore: bool = False) -> None:
        """Start it and wait until it answers."""
        self.live_restore = live_restore
        settings = self.directory / "daemon.json"  # in place of the machine's
        settings.write_text(json.dumps({"live-restore": live_restore}))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*within(self.network), "dockerd", *self._options(settings)],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            words = self.log.read_text(errors="replace")[-4000:]
            assert self._process.poll() is None, words
            assert time.monotonic() < deadline, words
            time.sleep(0.05)

    def _options(self, settings: Path) -> list[str]:
        own = {
            "config-file": settings,
            "data-root": self.directory / "r",
            "exec-root": self.directory / "x",
            "pidfile": self.directory / "pid",
            "host": self.address,
            # For a machine whose containerd serves all engines.
            "containerd-namespace": self.directory.name,
            "containerd-plugins-namespace": f"{self.directory.name}-plugins",
        }
        off = ("iptables", "ip6tables", "ip-forward", "ip-masq", "userland-proxy")
        return [
            *(f"--{name}={value}" for name, value in own.items()),
            *(f"--{name}=false" for name in off),
            "--bridge=none",
        ]

    def _answers(self) -> bool:
        try:
            if self._client is None:
                self._client = docker.DockerClient(base_url=self.address, timeout=180)
            self._client.ping()
        except (docker.errors.DockerException, OSError):
            return False
        return True

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it, or kill it; returns when it has ended."""
        assert self._process is not None
        self._process.send_signal(number)
        status = self._process.wait(STOP_S)
        self._process = None
        if number == signal.SIGKILL:
            # Its containerd goes with it, and has come to us; while it is not waited for, the next
            # engine takes it for alive.
            with contextlib.suppress(FileNotFoundError, ChildProcessError):
                containerd = self.directory / "x" / "containerd" / "containerd.pid"
                os.waitpid(int(containerd.read_text()), 0)
        assert status == (0 if number == signal.SIGTERM else -number), self.log.read_text()[-4000:]

    def restart(self, *, live_restore: bool = False) -> None:
        """Stop it and start it again."""
        self.end()
        self.start(live_restore=live_restore)

    def docker(self, *arguments: str) -> str:
        """What the docker command prints for it; fails with its output."""
        done = subprocess.run(
            ["docker", "--host", self.address, *arguments],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def close(self) -> None:
        """End it for good, with its containers and plugins."""
        if self._process is None:
            self.start()
        if self.live_restore:
            self.restart()
        for container in self.client.containers.list(all=True):
            container.remove(force=True)
        self.end()
        self.client.close()


def within(network: int) -> list[str]:
    """What to put before a command for it to run in the network of the process *network*."""
    return ["nsenter", f"--net=/proc/{network}/ns/net"]


@contextlib.contextmanager
def _network() -> Iterator[int]:
    """A process with a network of its own, in which it can reach itself."""
    script = "ip link set lo up && echo && exec sleep infinity"
    with subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE) as held:
        assert held.stdout is not None
        try:
            assert held.stdout.readline() == b"\n"
            yield held.pid
        finally:
            held.kill()


@contextlib.contextmanager
def own_engine() -> Iterator[OwnEngine]:
    """An engine that runs and has the image of the tests; nothing of it is left at the end."""
    # Short, because the kernel takes 107 bytes for a socket's path; and its name is one of a name
    # space of containerd, which has rules for them that mkdtemp does not keep.
    directory = Path(f"/var/tmp/passfs-e{secrets.token_hex(4)}")
    directory.mkdir(mode=0o700)
    try:
        with _private(directory), _network() as network:
            before = children()
            engine = OwnEngine(directory, network)
            try:
                engine.start()
                engine.client.api.import_image_from_data(_image(), repository=TOOLS_IMAGE)
                yield engine
                engine.close()
                # The shims of its containers, which it has left to us.
                reap(before)
            finally:
                end(before)  # whatever has failed
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def _private(directory: Path) -> Iterator[None]:
    """A mount of its own for *directory*, shared with nobody, however the machine shares its root.

    That is the harder case: mounts below a shared root reach it by more than one way.
    """
    subprocess.run(["mount", "--bind", "--make-private", directory, directory], check=True)
    target = os.fsencode(directory)
    try:
        yield
    finally:
        # The engine leaves the name space of the host's network, a test that failed maybe more.
        left = [entry.target for entry in mountinfo.read()]
        for at in reversed([at for at in left if mountinfo.is_below(at, target)]):
            syscalls.umount2(at, syscalls.MNT_DETACH)


def _image() -> bytes:
    """A root file system of one program, and a directory for the engine to copy into a volume."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        seed = tarfile.TarInfo("seed/file")
        seed.size = len(b"seeded\n")
        tar.addfile(seed, io.BytesIO(b"seeded\n"))
    return archive.getvalue()

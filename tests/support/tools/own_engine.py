"""A Docker engine of a test, which the test can stop, kill and start.

The engine has a network of its own, because an engine takes the bridge of any other for its own.
All its files lie below one directory. The exception is /run/docker/plugins, which all engines of a
machine share: the sockets of services and, named by ids, those of managed plugins.
"""

import contextlib
import io
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import docker
import docker.errors

from passthrough.linux import mountinfo, syscalls
from tests.support.tools.driver import TOOLS_IMAGE
from tests.support.tools.processes import children, end, reap

BUSYBOX = Path("/bin/busybox")
APPLETS = ("cat", "echo", "grep", "hostname", "id", "ls", "sh", "sleep", "touch", "true")
# A user that each Debian has, and the root of containers as ids of the host: user and group.
REMAPPED_USER = "daemon"
REMAPPED = (100000, 200000)
# The user of a rootless engine: an id that no user of the machine has.
ROOTLESS_USER = 61234
START_S = 60
STOP_S = 60


class OwnEngine:
    """A dockerd; `own_engine` makes it."""

    def __init__(self, directory: Path, namespaces: "Namespaces") -> None:
        """Prepare an engine in *namespaces*; `start` starts it."""
        self.directory = directory
        self.network = namespaces.pid
        """The id of a process in the network namespace of the engine."""
        self._namespaces = namespaces
        self.log = directory / "log"
        self.live_restore = False
        """True if containers go on running when this dockerd ends."""
        self._socket = directory / "s"
        self._process: subprocess.Popen[bytes] | None = None
        self._client: docker.DockerClient | None = None

    @property
    def address(self) -> str:
        """The DOCKER_HOST of the engine."""
        return f"unix://{self._socket}"

    @property
    def client(self) -> docker.DockerClient:
        """A client, which stays usable after a restart; `close` closes it."""
        assert self._client is not None
        return self._client

    def start(self, *, live_restore: bool = False) -> None:
        """Start the engine and wait until it answers."""
        self.live_restore = live_restore
        settings = self.directory / "daemon.json"  # in place of the machine's
        settings.write_text(json.dumps({"live-restore": live_restore}))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._namespaces.command,
                    "dockerd",
                    *self._options(settings),
                    *self._namespaces.options,
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            text = self.log.read_text(errors="replace")[-4000:]
            assert self._process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.05)

    def _options(self, settings: Path) -> list[str]:
        own = {
            "config-file": settings,
            "data-root": self.directory / "r",
            "exec-root": self.directory / "x",
            "pidfile": self.directory / "pid",
            "host": self.address,
            # A machine may have one containerd for all engines.
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
        """Send a signal to the engine and wait for its end."""
        assert self._process is not None
        self._process.send_signal(number)
        status = self._process.wait(STOP_S)
        self._process = None
        if number == signal.SIGKILL:
            # containerd ends with the engine, and this process is then its parent. Until this
            # process waits for containerd, the next engine believes that it is alive.
            with contextlib.suppress(FileNotFoundError, ChildProcessError):
                containerd = self.directory / "x" / "containerd" / "containerd.pid"
                os.waitpid(int(containerd.read_text()), 0)
        assert status == (0 if number == signal.SIGTERM else -number), self.log.read_text()[-4000:]

    def restart(self, *, live_restore: bool = False) -> None:
        """Stop the engine and start it again."""
        self.end()
        self.start(live_restore=live_restore)

    def docker(self, *arguments: str) -> str:
        """Run the docker command and return its output; fail with output and errors."""
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
        """Remove all containers, and end the engine and its plugins."""
        if self._process is None:
            self.start()
        if self.live_restore:
            self.restart()
        for container in self.client.containers.list(all=True):
            container.remove(force=True)
        self.end()
        self.client.close()


def within(network: int) -> list[str]:
    """Return the prefix of a command that runs in the network of the process *network*."""
    return ["nsenter", f"--net=/proc/{network}/ns/net"]


class Namespaces(NamedTuple):
    """Namespaces for an engine, held by a process."""

    pid: int
    command: Sequence[str]
    """The prefix of the command dockerd."""
    options: Sequence[str] = ()
    """More options of dockerd."""


@contextlib.contextmanager
def _holding(script: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a shell by *command*; it runs *script*, then sleeps, and is killed at the end."""
    words = [*command, "sh", "-euc", f"{script}\necho\nexec sleep infinity"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as held:
        assert held.stdout is not None
        try:
            yield held
        finally:
            held.kill()


@contextlib.contextmanager
def usual(_: Path) -> Iterator[Namespaces]:
    """Make a network namespace for an engine, with a loopback interface."""
    with _holding("ip link set lo up", "unshare", "--net") as held:
        _is_ready(held)
        yield Namespaces(held.pid, within(held.pid))


@contextlib.contextmanager
def remapped(directory: Path) -> Iterator[Namespaces]:
    """Make a network for an engine with userns-remap, and its /etc/subuid and /etc/subgid."""
    (directory / "subuid").write_text(f"{REMAPPED_USER}:{REMAPPED[0]}:65536\n")
    (directory / "subgid").write_text(f"{REMAPPED_USER}:{REMAPPED[1]}:65536\n")
    script = f"""ip link set lo up
        mount --bind {directory}/subuid /etc/subuid
        mount --bind {directory}/subgid /etc/subgid"""
    apart = ("unshare", "--net", "--mount", "--propagation", "slave")
    with _holding(script, *apart) as held:
        _is_ready(held)
        command = ["nsenter", f"--target={held.pid}", "--net", "--mount"]
        yield Namespaces(held.pid, command, [f"--userns-remap={REMAPPED_USER}"])


@contextlib.contextmanager
def rootless(directory: Path) -> Iterator[Namespaces]:
    """Make the user namespace, mounts and network of a rootless engine, as RootlessKit does."""
    fuse = directory / "fuse"  # of mode 0666, as udev makes it
    os.mknod(fuse, stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
    fuse.chmod(0o666)
    proxy = directory / "bin" / "rootlesskit-docker-proxy"  # dockerd requires it, even if unused
    proxy.parent.mkdir()
    proxy.symlink_to("/bin/true")
    for path in (directory, *directory.iterdir()):
        os.chown(path, ROOTLESS_USER, ROOTLESS_USER)
    script = f"""echo
        read mapped
        ip link set lo up
        mount -t tmpfs run /run
        mkdir -p /run/docker/plugins
        mount --bind {fuse} /dev/fuse"""
    user = f"--reuid={ROOTLESS_USER}", f"--regid={ROOTLESS_USER}", "--clear-groups"
    apart = ("unshare", "--user", "--net", "--mount", "--propagation", "slave")
    with _holding(script, "setpriv", *user, *apart) as held:
        _is_ready(held)
        for kind in ("uid", "gid"):
            ids = f"0 {ROOTLESS_USER} 1\n1 {REMAPPED[0]} 65535\n"
            Path(f"/proc/{held.pid}/{kind}_map").write_text(ids)
        assert held.stdin is not None
        held.stdin.write(b"mapped\n")
        held.stdin.flush()
        _is_ready(held)
        inside = ("--user", "--net", "--mount", "--setuid=0", "--setgid=0")
        environment = {
            "HOME": directory,
            "PATH": f"{proxy.parent}:{os.environ['PATH']}",
            "ROOTLESSKIT_STATE_DIR": directory,
            "XDG_RUNTIME_DIR": "/run",
        }
        words = [f"{name}={value}" for name, value in environment.items()]
        command = ["nsenter", f"--target={held.pid}", *inside, "env", *words]
        yield Namespaces(held.pid, command, ["--rootless"])


Kind = Callable[[Path], contextlib.AbstractContextManager[Namespaces]]
"""Makes the namespaces for an engine with this directory."""


def _is_ready(held: subprocess.Popen[bytes]) -> None:
    """Wait until the script of *held* has reached its next `echo`."""
    assert held.stdout is not None
    assert held.stdout.readline() == b"\n"


@contextlib.contextmanager
def own_engine(kind: Kind = usual) -> Iterator[OwnEngine]:
    """Run an engine that has the image of the tests, and remove all its files."""
    # Short, because the kernel accepts 107 bytes for the path of a socket. Not by mkdtemp, because
    # containerd does not accept its names for a containerd namespace.
    directory = Path(f"/var/tmp/passfs-e{secrets.token_hex(4)}")
    directory.mkdir(mode=0o711)
    try:
        with _private(directory), kind(directory) as namespaces:
            before = children()
            engine = OwnEngine(directory, namespaces)
            try:
                engine.start()
                engine.client.api.import_image_from_data(_image(), repository=TOOLS_IMAGE)
                yield engine
                engine.close()
                # The shims of its containers are now children of this process.
                reap(before)
            finally:
                end(before)  # also after a failure
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def _private(directory: Path) -> Iterator[None]:
    """Make *directory* a private mount, even if the machine's root is a shared one.

    A private mount is the harder case: mounts below a shared root reach it by more than one way.
    """
    subprocess.run(["mount", "--bind", "--make-private", directory, directory], check=True)
    target = os.fsencode(directory)
    try:
        yield
    finally:
        # The engine leaves the mount of its network namespace; a failed test may leave more.
        left = [entry.target for entry in mountinfo.read()]
        for at in reversed([at for at in left if mountinfo.is_below(at, target)]):
            syscalls.umount2(at, syscalls.MNT_DETACH)


def _image() -> bytes:
    """Return a root file system: one program, and a directory to copy into a volume."""
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

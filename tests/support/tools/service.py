"""The plugin in its own process, as a service manager runs it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.support.fakes.dockerd import mounted, settings
from tests.support.fakes.service_manager import ServiceManager

RUN = """
import os
import sys
from plugin import app
from plugin.app import run
from plugin.errors import PluginError
from plugin.admin.settings import Settings
if program := os.environ.get("PROGRAM"):
    app.identity = lambda: program
try:
    run(Settings.from_environment(os.environ), managed="--managed" in sys.argv)
except PluginError as error:
    raise SystemExit(str(error))
"""
START_S = 20


def request(path: str, **fields: object) -> bytes:
    """Return an HTTP request; the plugin closes the connection after its reply."""
    body = json.dumps(fields).encode()
    head = f"POST /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Service:
    """A plugin process, which can be started again after its end."""

    def __init__(
        self,
        directory: Path,
        manager: ServiceManager | None = None,
        *,
        within: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        managed: bool = False,
    ) -> None:
        """Use *directory* for socket, data, mounts and log; *manager*, if any, starts the process.

        *within* is a command that executes the plugin's command, which follows it. If *managed*,
        the process runs as an engine's managed plugin does.
        """
        self._within = within
        self._arguments = ["--managed"] if managed else []
        self.environment = dict(environment or {})
        """Its PROGRAM is the identity of the program, in place of that of the files."""
        self.directory = directory
        self.manager = manager
        self.log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the process."""
        given = settings(self.directory)
        environment = os.environ | {
            "PASSFS_SOCKET": str(given.socket),
            "PASSFS_DATA_DIR": str(given.data_dir),
            "PASSFS_MOUNT_DIR": str(given.mount_dir),
            **self.environment,
        }
        start = subprocess.Popen if self.manager is None else self.manager.start
        with self.log.open("ab") as log:
            self.process = start(
                [*self._within, sys.executable, "-c", RUN, *self._arguments],
                env=environment,
                stdout=log,
                stderr=log,
            )

    def start(self) -> float:
        """Start the process, wait until it answers, and return the seconds that it took.

        Time in which it was ready to run and had no processor does not count.
        """
        began = time.monotonic()
        self.launch()
        assert self.process is not None
        while time.monotonic() < began + START_S:
            assert self.process.poll() is None, self.log.read_text()
            try:
                self.call("VolumeDriver.Capabilities")
            except (FileNotFoundError, ConnectionRefusedError):
                continue
            return time.monotonic() - began - self._waited_s()
        raise AssertionError(self.log.read_text())

    def _waited_s(self) -> float:
        """Return how long the main thread has waited for a processor, schedstat in proc(5)."""
        assert self.process is not None
        _, waited_ns, _ = Path(f"/proc/{self.process.pid}/schedstat").read_text().split()
        return int(waited_ns) / 1e9

    def starts_within(self, limit_s: float) -> bool:
        """Return whether one of three starts takes less than *limit_s*.

        One start may be slow because other processes use the disk.
        """
        for _ in range(2):
            if self.start() < limit_s:
                return True
            self.end(signal.SIGTERM)
        return self.start() < limit_s

    def end(self, number: signal.Signals) -> tuple[int, float]:
        """Send signal *number*; return the exit status, and the seconds until the end."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        status = self.process.wait(START_S)
        self.process = None
        return status, time.monotonic() - began

    def connect(self) -> socket.socket:
        """Return a connection, which the caller closes."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(START_S)
        try:
            client.connect(str(settings(self.directory).socket))
        except OSError:
            client.close()
            raise
        return client

    def call(self, path: str, **fields: object) -> Any:
        """Send one request, and return the JSON of the reply."""
        with closing(self.connect()) as client:
            client.sendall(request(path, **fields))
            received = b"".join(iter(lambda: client.recv(65536), b""))
        return json.loads(received.partition(b"\r\n\r\n")[2])

    def mounted(self) -> list[str]:
        """Return the names of mounted volumes; a name stands once for each of its mounts."""
        return mounted(self.directory)


@contextmanager
def started(
    directory: Path, manager: ServiceManager | None = None, *, managed: bool = False
) -> Iterator[Service]:
    """Run a plugin process in *directory* during the block."""
    service = Service(directory, manager, managed=managed)
    service.start()
    try:
        yield service
    finally:
        if service.process is not None:
            service.end(signal.SIGTERM)

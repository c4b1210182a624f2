"""A service manager for one service, as systemd is to its plugin: sd_notify(3), sd_listen_fds(3).

It starts the service with what it has kept for it, and takes note of what the service says. Ending
and beginning the service again is the caller's; `close` is what systemd does when a service is
stopped for good.
"""

import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

# In the service the descriptors begin with 3; here they stay away from there, so that they can be
# put in place one after the other.
FIRST_OWN_FD = 6000
MESSAGE_BYTES = 4096
READY_S = 20.0

# Between fork and exec, with the service's own process id.
LAUNCH = """
import os, sys
for number, fd in enumerate(map(int, filter(None, sys.argv[1].split(","))), 3):
    os.dup2(fd, number)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """Keeps a service's descriptors by name while it restarts; a context manager."""

    def __init__(self, directory: Path, listen: Path | None = None) -> None:
        """Talk to the service over a socket in *directory*; listen at *listen* in its place."""
        self.kept: dict[str, int] = {}
        self.said: list[str] = []
        """What the service has said of its state since it was started."""
        self.deaf = False
        """Whether no barrier is answered any more, as while systemd is busy."""
        self._unanswered: list[int] = []
        self._changed = threading.Condition()
        self._address = directory / "notify.sock"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self._address))
        self._listener: socket.socket | None = None
        if listen is not None:
            # Both as systemd does, systemd.socket(5).
            listen.parent.mkdir(parents=True, exist_ok=True)
            listen.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(listen))
            self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def start(
        self, command: Sequence[str], *, env: Mapping[str, str], **more: Any
    ) -> subprocess.Popen[bytes]:
        """Start the service, and hand over what there is."""
        self.said = []
        given = dict(self.kept)
        if self._listener is not None:
            given["passfs.socket"] = fcntl.fcntl(
                self._listener, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_FD
            )
        numbers = ",".join(map(str, given.values()))
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LAUNCH, numbers, *command],
                env={
                    **env,
                    "NOTIFY_SOCKET": str(self._address),
                    "LISTEN_FDS": str(len(given)),
                    "LISTEN_FDNAMES": ":".join(given),
                },
                pass_fds=tuple(given.values()),
                **more,
            )
        finally:
            if self._listener is not None:
                os.close(given["passfs.socket"])

    def hears(self, state: str) -> bool:
        """Wait until the service says *state*; False if that does not come."""
        with self._changed:
            return self._changed.wait_for(lambda: state in self.said, READY_S)

    def keeps(self, count: int) -> bool:
        """Wait until it keeps *count* descriptors; False if that does not come."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.kept) == count, READY_S)

    def keep(self, name: str, fd: int) -> None:
        """Keep a duplicate of *fd*."""
        assert name not in self.kept
        self.kept[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_FD)

    def drop(self, *names: str) -> None:
        """Keep what has these names no longer."""
        with self._changed:
            for name in names:
                os.close(self.kept.pop(name))

    def close(self) -> None:
        """Keep nothing any more, and listen to nobody."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(b"END", str(self._address))
        self._thread.join()
        self._notify.close()
        self._address.unlink()
        if self._listener is not None:
            os.unlink(self._listener.getsockname())  # RemoveOnStop=
            self._listener.close()
        self.drop(*self.kept)
        for fd in self._unanswered:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            message, fds, _, _ = socket.recv_fds(self._notify, MESSAGE_BYTES, 8)
            if message == b"END":
                return
            fields = dict(line.split("=", 1) for line in message.decode().splitlines())
            with self._changed:
                self._take(fields, fds)
                self._changed.notify_all()

    def _take(self, fields: dict[str, str], fds: Sequence[int]) -> None:
        name = fields.get("FDNAME", "")
        if fields.get("FDSTORE") == "1":
            assert fields["FDPOLL"] == "0"
            (fd,) = fds
            self.keep(name, fd)
        elif fields.get("FDSTOREREMOVE") == "1":
            self.drop(*{name} & self.kept.keys())
        elif "BARRIER" not in fields:
            self.said += [f"{key}={value}" for key, value in fields.items()]
        elif self.deaf:
            self._unanswered += fds
            return
        for fd in fds:
            os.close(fd)

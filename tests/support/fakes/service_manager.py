"""A service manager for one service, as systemd: sd_notify(3), sd_listen_fds(3).

It starts the service with its stored descriptors, and records the states that the service reports.
The caller ends the service and starts it again. `close` does what systemd does when it stops a
service for good.
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

# The service's descriptors begin with 3. Here they have higher numbers, so that dup2(2) to the
# number of one descriptor does not overwrite another.
FIRST_OWN_FD = 6000
MESSAGE_BYTES = 4096
READY_S = 20.0
END, SETTLED = b"END", b"SETTLED"
"""Messages of the test: to end, and to close the descriptor that comes with the message."""

# Runs in the service's process, before its program.
LAUNCH = """
import os, sys
for number, fd in enumerate(map(int, filter(None, sys.argv[1].split(","))), 3):
    os.dup2(fd, number)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ServiceManager:
    """The service manager, which stores descriptors by name; a context manager."""

    def __init__(self, directory: Path, listen: Path | None = None) -> None:
        """Take notifications at a socket in *directory*; listen at *listen* for the service."""
        self.stored: dict[str, int] = {}
        self.states: list[str] = []
        """The states that the service has reported since its start, such as "READY=1"."""
        self.unresponsive = False
        """True if barriers get no answer, as while systemd is busy."""
        self._unanswered: list[int] = []
        self._changed = threading.Condition()
        self._address = directory / "notify.sock"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self._address))
        self._listener: socket.socket | None = None
        if listen is not None:
            # systemd makes the directory and removes an old socket too, systemd.socket(5).
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
        """Start the service, and pass it the stored descriptors and the listening socket."""
        self.states = []
        passed = self.settled()
        if self._listener is not None:
            passed["passfs.socket"] = fcntl.fcntl(
                self._listener, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_FD
            )
        numbers = ",".join(map(str, passed.values()))
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LAUNCH, numbers, *command],
                env={
                    **env,
                    "NOTIFY_SOCKET": str(self._address),
                    "LISTEN_FDS": str(len(passed)),
                    "LISTEN_FDNAMES": ":".join(passed),
                },
                pass_fds=tuple(passed.values()),
                **more,
            )
        finally:
            if self._listener is not None:
                os.close(passed["passfs.socket"])

    def wait_for_state(self, state: str) -> bool:
        """Wait until the service reports *state*; return False after READY_S."""
        with self._changed:
            return self._changed.wait_for(lambda: state in self.states, READY_S)

    def wait_for_count(self, count: int) -> bool:
        """Wait until *count* descriptors are stored; return False after READY_S."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.stored) == count, READY_S)

    def settled(self) -> dict[str, int]:
        """Return the stored descriptors, once all messages that have been sent are handled."""
        read_end, write_end = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own, open(read_end, "rb") as read:
            own.connect(str(self._address))
            socket.send_fds(own, [SETTLED], [write_end])
            os.close(write_end)
            read.read()
        return dict(self.stored)

    def store(self, name: str, fd: int) -> None:
        """Store a duplicate of *fd* as *name*."""
        assert name not in self.stored
        self.stored[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_FD)

    def drop(self, *names: str) -> None:
        """Close the stored descriptors *names*."""
        with self._changed:
            for name in names:
                os.close(self.stored.pop(name))

    def close(self) -> None:
        """Close all descriptors and sockets."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(END, str(self._address))
        self._thread.join()
        self._notify.close()
        self._address.unlink()
        if self._listener is not None:
            os.unlink(self._listener.getsockname())  # RemoveOnStop=
            self._listener.close()
        self.drop(*self.stored)
        for fd in self._unanswered:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            message, fds, _, _ = socket.recv_fds(self._notify, MESSAGE_BYTES, 8)
            if message == END:
                return
            if message == SETTLED:
                os.close(*fds)
                continue
            fields = dict(line.split("=", 1) for line in message.decode().splitlines())
            with self._changed:
                self._handle(fields, fds)
                self._changed.notify_all()

    def _handle(self, fields: dict[str, str], fds: Sequence[int]) -> None:
        name = fields.get("FDNAME", "")
        if fields.get("FDSTORE") == "1":
            assert fields["FDPOLL"] == "0"
            (fd,) = fds
            self.store(name, fd)
        elif fields.get("FDSTOREREMOVE") == "1":
            self.drop(*{name} & self.stored.keys())
        elif "BARRIER" not in fields:
            self.states += [f"{key}={value}" for key, value in fields.items()]
        elif self.unresponsive:
            self._unanswered += fds
            return
        for fd in fds:
            os.close(fd)

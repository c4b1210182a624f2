"""The service manager, such as systemd: its listening socket, and the descriptors that it stores.

When it starts the plugin, systemd may pass it a listening socket, sd_listen_fds(3). While no plugin
runs, systemd stores descriptors for the next one, sd_notify(3): the *fd store*. For each mounted
volume these are

    fuse     a duplicate of the descriptor of /dev/fuse
    life     the plugin's end of the worker's standard input; the worker ends when that end closes
    log      the plugin's end of the worker's standard error
    process  the worker's process descriptor

So a worker outlives the plugin, and the next plugin finds everything that it needs to go on. When
the service is stopped, not restarted, systemd closes the descriptors, and the workers end.

In the fd store a descriptor's name is its kind and the number of its mount ("life12"). Names of
volumes would be too long. All names come back in one environment variable, and the kernel accepts
no string over 128 KiB, execve(2).

The plugin answers a Mount once systemd has read the descriptors (a barrier, sd_notify(3)) and the
registry has the mount's number. If the plugin dies before that, the next one detaches the mount.
If systemd is busy or its store is full, the mount is served nevertheless, and ends with the plugin.
The plugin starts no process that stores the descriptors. Such a process could die too, would run
old code, and would not end with the service.
"""

import errno
import logging
import os
import re
import select
import socket
from collections.abc import Iterable, Mapping, MutableMapping
from typing import NamedTuple

from plugin.errors import CannotStart

log = logging.getLogger(__name__)

FIRST_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
KINDS = ("fuse", "life", "log", "process")
FD_NAME = re.compile(r"(fuse|life|log|process)([0-9]+)")
# The service manager answers within milliseconds, unless it is reloading its units.
ANSWER_TIMEOUT_S = 3.0


class FdStore:
    """The descriptors that the service manager stores for the next plugin, by number of a mount."""

    def __init__(self, address: str = "") -> None:
        """Take the address of the service manager's socket, $NOTIFY_SOCKET; empty if there is none.

        Without a service manager nothing is stored.
        """
        # An abstract socket's name begins with a NUL, which no environment can hold, unix(7).
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @property
    def exists(self) -> bool:
        """Return whether there is a service manager."""
        return bool(self._address)

    def add(self, number: int, descriptors: Mapping[str, int]) -> None:
        """Store duplicates of *descriptors*, by kind; blocks for ANSWER_TIMEOUT_S at most.

        The service manager has them on return, even if this process dies at once. It ignores
        messages of a process that has ended, so this waits until it has read them.

        Raises:
            OSError: some of the descriptors may be stored, or none.
        """
        with self._connected() as manager:
            # sendmsg(2) waits only if the queue is full, because the service manager reads nothing.
            manager.settimeout(ANSWER_TIMEOUT_S / 2 / len(descriptors))
            for kind, fd in descriptors.items():
                # Without FDPOLL=0, systemd drops a descriptor that has hung up. A worker that died
                # between two plugins would then look like one with lost descriptors.
                message = f"FDSTORE=1\nFDNAME={kind}{number}\nFDPOLL=0"
                socket.send_fds(manager, [message.encode()], [fd])
            _wait_until_read(manager)

    def remove(self, numbers: Iterable[int]) -> None:
        """Drop the descriptors of the mounts *numbers*; blocks while the service manager is busy.

        If a message fails, the descriptors stay stored, and the next plugin removes them.
        """
        self._send(f"FDSTOREREMOVE=1\nFDNAME={kind}{each}" for each in numbers for kind in KINDS)

    def notify(self, state: str) -> None:
        """Report *state*, such as "READY=1", to the service manager; blocks as `remove` does."""
        self._send([state])

    def _send(self, messages: Iterable[str]) -> None:
        if not self.exists:
            return
        try:
            with self._connected() as manager:
                manager.settimeout(ANSWER_TIMEOUT_S)
                for message in messages:
                    manager.send(message.encode())
        except OSError as error:
            log.warning("cannot send a message to the service manager: %s", error)

    def _connected(self) -> socket.socket:
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            manager.connect(self._address)
        except OSError:
            manager.close()
            raise
        return manager


class Inherited(NamedTuple):
    """Everything that the service manager passed; the receiver owns the descriptors."""

    store: FdStore = FdStore()
    """The fd store, for the next plugin."""
    listener: socket.socket | None = None
    """The plugin's socket, if the service manager listens on it."""
    stored: Mapping[int, Mapping[str, int]] = {}
    """The descriptors that the fd store kept: by number of the mount, then by kind."""


NOTHING_INHERITED = Inherited()


def inherited(environment: MutableMapping[str, str]) -> Inherited:
    """Return what the service manager passed, and remove its variables from *environment*.

    Call this once: the result owns all descriptors that were passed.

    Raises:
        CannotStart: several sockets were passed, or the descriptor is no listening Unix stream
            socket.
    """
    given = {name: environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS")}
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    store = FdStore(environment.pop("NOTIFY_SOCKET", ""))
    if given["LISTEN_PID"] != str(
        os.getpid()
    ):  # meant for the parent process, which passed them on
        return Inherited(store)
    stored: dict[int, dict[str, int]] = {}
    others: list[int] = []
    for position in range(int(given["LISTEN_FDS"] or 0)):
        fd = FIRST_FD + position
        os.set_inheritable(fd, False)  # noqa: FBT003 - named by the function
        name = FD_NAME.fullmatch(names[position]) if position < len(names) else None
        if name is None:
            others.append(fd)
        else:
            stored.setdefault(int(name[2]), {})[name[1]] = fd
    return Inherited(store, _listener(others), stored)


def _listener(fds: list[int]) -> socket.socket | None:
    """Return the socket on which the service manager listens, or None."""
    if not fds:
        return None
    if len(fds) > 1:
        raise CannotStart(
            f"the service manager passed {len(fds)} sockets (LISTEN_FDS), and exactly one is"
            " expected: the socket unit must have one line ListenStream="
        )
    try:
        listener = socket.socket(fileno=fds[0])
    except OSError:  # not a socket
        listener = None
    if listener is not None:
        accepts = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if accepts and (listener.family, listener.type) == (socket.AF_UNIX, socket.SOCK_STREAM):
            return listener
        listener.close()
    raise CannotStart(
        "the descriptor that the service manager passed (LISTEN_FDS) is no listening Unix stream"
        " socket: the socket unit must have one line ListenStream= with an absolute path"
    )


def _wait_until_read(manager: socket.socket) -> None:
    """Wait until the service manager has read all messages; it closes the barrier's descriptor.

    Raises:
        OSError: it has not done so within ANSWER_TIMEOUT_S / 2.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            socket.send_fds(manager, [b"BARRIER=1"], [write_end])
        finally:
            os.close(write_end)
        poll = select.poll()
        poll.register(read_end, 0)  # poll(2) always reports POLLHUP
        if not poll.poll(1000 * ANSWER_TIMEOUT_S / 2):
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    finally:
        os.close(read_end)

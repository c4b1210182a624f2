"""The service manager's side, which is systemd: what it hands over, and what it keeps for us.

At the start it may hand over the socket that it listens on for us, sd_listen_fds(3). And it keeps
descriptors while no plugin runs, sd_notify(3): the *store*. For each mounted volume these are

    fuse     a duplicate of the descriptor of /dev/fuse
    life     our end of the worker's standard input, on which the worker's life hangs
    log      our end of its standard error
    process  its process descriptor

so that workers outlive us: the next plugin finds all that it needs to go on. When the service is
stopped, rather than restarted, systemd drops them, and the workers end.

In the store they have names, of a kind and the number of the mount ("life12"). Not of the volume:
all names come back in one variable of the environment, and the kernel takes none over 128 KiB.

Mount is answered when systemd has read what it has to keep (a barrier, sd_notify(3)) and the
registry has the number of the mount in the store. If the plugin dies before, the next one detaches
the mount. If systemd does not take the descriptors, because it is busy or its store is full, the
mount is served all the same, and ends with the plugin. No process of our own keeps the descriptors:
it could die too, would run old code, and would not end with the service.
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
NAME = re.compile(r"(fuse|life|log|process)([0-9]+)")
# The service manager answers within milliseconds, unless it is reloading its units.
ANSWER_S = 3.0


class Store:
    """Descriptors that the service manager keeps for the next plugin, by the number of a mount."""

    def __init__(self, address: str = "") -> None:
        """Take the service manager's socket, of $NOTIFY_SOCKET; without one nothing is kept."""
        # An abstract socket's name begins with a NUL, which no environment can hold, unix(7).
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @property
    def keeps(self) -> bool:
        """Whether there is a service manager at all."""
        return bool(self._address)

    def keep(self, number: int, descriptors: Mapping[str, int]) -> None:
        """Have *descriptors*, by kind, kept; blocks, but no longer than ANSWER_S.

        On return they are, even if this process dies at once: the service manager takes nothing
        from a process that it cannot find any more.

        Raises:
            OSError: they may be kept or not.
        """
        with self._connected() as manager:
            # The longest wait for room in its queue; there is none unless it reads nothing at all.
            manager.settimeout(ANSWER_S / 2 / len(descriptors))
            for kind, fd in descriptors.items():
                # FDPOLL=0: else it drops what has hung up, and a worker that has died while nobody
                # looked could not be told from one whose descriptors have got lost.
                message = f"FDSTORE=1\nFDNAME={kind}{number}\nFDPOLL=0"
                socket.send_fds(manager, [message.encode()], [fd])
            _wait_until_read(manager)

    def forget(self, numbers: Iterable[int]) -> None:
        """Have nothing kept any more of the mounts *numbers*; blocks while it reads nothing.

        What it cannot be told is kept in vain, and the next plugin will have it forgotten.
        """
        self._tell(f"FDSTOREREMOVE=1\nFDNAME={kind}{each}" for each in numbers for kind in KINDS)

    def say(self, state: str) -> None:
        """Tell the service manager how far we are, such as "READY=1"; may block as `forget`."""
        self._tell([state])

    def _tell(self, messages: Iterable[str]) -> None:
        if not self.keeps:
            return
        try:
            with self._connected() as manager:
                manager.settimeout(ANSWER_S)
                for message in messages:
                    manager.send(message.encode())
        except OSError as error:
            log.warning("the service manager cannot be told how things are: %s", error)

    def _connected(self) -> socket.socket:
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            manager.connect(self._address)
        except OSError:
            manager.close()
            raise
        return manager


class Inherited(NamedTuple):
    """What the service manager has handed over; its receiver owns the descriptors."""

    store: Store = Store()
    """What is kept for the next plugin."""
    listener: socket.socket | None = None
    """The plugin's socket, if the service manager listens on it."""
    kept: Mapping[int, Mapping[str, int]] = {}
    """What the store has kept for this one: descriptors by number of the mount, then by kind."""


NOTHING = Inherited()


def inherited(environment: MutableMapping[str, str]) -> Inherited:
    """Take what the service manager has handed over, and out of *environment* what says so.

    Called once: it owns all descriptors that were handed over.

    Raises:
        CannotStart: the socket is not one, or not of the right kind.
    """
    given = {name: environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS")}
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    store = Store(environment.pop("NOTIFY_SOCKET", ""))
    if given["LISTEN_PID"] != str(os.getpid()):  # handed over to our parent, and left lying
        return Inherited(store)
    kept: dict[int, dict[str, int]] = {}
    others: list[int] = []
    for position in range(int(given["LISTEN_FDS"] or 0)):
        fd = FIRST_FD + position
        os.set_inheritable(fd, False)  # noqa: FBT003 - named by the function
        name = NAME.fullmatch(names[position]) if position < len(names) else None
        if name is None:
            others.append(fd)
        else:
            kept.setdefault(int(name[2]), {})[name[1]] = fd
    return Inherited(store, _listener(others), kept)


def _listener(fds: list[int]) -> socket.socket | None:
    """The one socket that the service manager listens on, if it does."""
    if not fds:
        return None
    if len(fds) > 1:
        raise CannotStart(
            f"{len(fds)} sockets have been handed over (LISTEN_FDS), and exactly one is expected:"
            " the socket unit must have one line ListenStream="
        )
    try:
        listener = socket.socket(fileno=fds[0])
    except OSError:  # it is no socket at all
        listener = None
    if listener is not None:
        accepts = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if accepts and (listener.family, listener.type) == (socket.AF_UNIX, socket.SOCK_STREAM):
            return listener
        listener.close()
    raise CannotStart(
        "what has been handed over (LISTEN_FDS) is no Unix stream socket that listens: the socket"
        " unit must have one line ListenStream= with an absolute path"
    )


def _wait_until_read(manager: socket.socket) -> None:
    """Wait until the service manager has read all that was sent: it closes what comes last."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            socket.send_fds(manager, [b"BARRIER=1"], [write_end])
        finally:
            os.close(write_end)
        poll = select.poll()
        poll.register(read_end, 0)  # POLLHUP comes unasked
        if not poll.poll(1000 * ANSWER_S / 2):
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    finally:
        os.close(read_end)

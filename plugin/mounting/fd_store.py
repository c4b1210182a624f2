"""The service manager, such as systemd: its listening socket, and the descriptors that it stores.

When it starts the plugin, systemd may pass it a listening socket, sd_listen_fds(3). While no plugin
runs, systemd stores descriptors for the next one, sd_notify(3): the *fd store*. For each mounted
volume these are

    fuse     a duplicate of the descriptor of /dev/fuse
    life     the plugin's end of the worker's standard input; the worker ends when that end closes
    log      the plugin's end of the worker's standard error
    process  the worker's process descriptor; with a standby, that of the first guard
    control  the control page, passthrough/worker/control.py

So a worker outlives the plugin, and the next plugin finds everything that it needs to go on. When
the service is stopped, not restarted, systemd closes the descriptors, and the workers end.

In the fd store a descriptor's name is its kind and the number of its mount ("life12"). Names of
volumes would be too long. All names come back in one environment variable, and the kernel accepts
no string over 128 KiB, execve(2).

A newer program may replace the processes of a mount (succession.py). The names of the descriptors
of the new processes have two letters of the kind, the number, and the *turn* of the processes:
"li12.1" after the first replacement. /dev/fuse keeps its name: systemd drops a second descriptor of
an open file that it stores already.

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
import threading
from collections.abc import Iterable, Mapping, MutableMapping
from typing import NamedTuple

from plugin.errors import CannotStart

log = logging.getLogger(__name__)

FIRST_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
FUSE = "fuse"
PROCESS_KINDS = ("life", "log", "process")
NEEDED = (FUSE, *PROCESS_KINDS)
KINDS = (*NEEDED, "control")  # an older passfs stored no control page
_OF_FIRST_TURN = re.compile(r"(fuse|life|log|process|control)([0-9]+)")
_OF_LATER_TURN = re.compile(r"(li|lo|pr|co)([0-9]+)\.([1-9][0-9]*)")
# The service manager answers within milliseconds, unless it is reloading its units.
ANSWER_TIMEOUT_S = 3.0


class FdStore:
    """The descriptors that the service manager stores for the next plugin, by number of a mount."""

    def __init__(
        self, address: str = "", room: int | None = None, stored: Iterable[str] = ()
    ) -> None:
        """Take the address of the service manager's socket, $NOTIFY_SOCKET; empty if there is none.

        Without a service manager nothing is stored. *room* is for how many descriptors it has room,
        None if it does not tell; *stored* are the names of those that it has stored.
        """
        # An abstract socket's name begins with a NUL, which no environment can hold, unix(7).
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._room = room
        self._names = set(stored)
        self._lock = threading.Lock()  # of `_names`: the functions run in threads

    @property
    def exists(self) -> bool:
        """Return whether there is a service manager."""
        return bool(self._address)

    def add(self, number: int, descriptors: Mapping[str, int]) -> None:
        """Store duplicates of *descriptors*, by key; blocks for ANSWER_TIMEOUT_S at most.

        A key is the kind of a descriptor, with the turn of its processes (`key_of`).

        The service manager has them on return, even if this process dies at once. It ignores
        messages of a process that has ended, so this waits until it has read them.

        Raises:
            OSError: some of the descriptors may be stored, or none. ENOSPC: none, for lack of room.
        """
        names = {name_of(key, number) for key in descriptors}
        # systemd drops what it has no room for, and does not say so.
        with self._lock:
            if self._room is not None and len(self._names | names) > self._room:
                raise OSError(errno.ENOSPC, "the service manager stores no more descriptors")
            self._names |= names
        with self._connected() as manager:
            # sendmsg(2) waits only if the queue is full, because the service manager reads nothing.
            manager.settimeout(ANSWER_TIMEOUT_S / 2 / len(descriptors))
            for key, fd in descriptors.items():
                # Without FDPOLL=0, systemd drops a descriptor that has hung up. A worker that died
                # between two plugins would then look like one with lost descriptors.
                message = f"FDSTORE=1\nFDNAME={name_of(key, number)}\nFDPOLL=0"
                socket.send_fds(manager, [message.encode()], [fd])
            _wait_until_read(manager)

    def remove(self, keys: Mapping[int, Iterable[str]]) -> bool:
        """Drop the descriptors with *keys*, by number of the mount; blocks while systemd is busy.

        If a message fails, which the result says, descriptors may stay stored, and the next plugin
        removes them.
        """
        names = [name_of(key, number) for number in keys for key in keys[number]]
        removed = self._send(f"FDSTOREREMOVE=1\nFDNAME={name}" for name in names)
        if removed:
            with self._lock:
                self._names.difference_update(names)
        return removed

    def notify(self, state: str) -> None:
        """Report *state*, such as "READY=1", to the service manager; blocks as `remove` does."""
        self._send([state])

    def _send(self, messages: Iterable[str]) -> bool:
        """Send *messages*; log a failure, and return whether there was none."""
        if not self.exists:
            return True
        try:
            with self._connected() as manager:
                manager.settimeout(ANSWER_TIMEOUT_S)
                for message in messages:
                    manager.send(message.encode())
        except OSError as error:
            log.warning("cannot send a message to the service manager: %s", error)
            return False
        return True

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
    """The descriptors that the fd store kept: by number of the mount, then by key."""


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
    address, room = environment.pop("NOTIFY_SOCKET", ""), environment.pop("FDSTORE", "")
    limit = int(room) if room.isdecimal() else None  # since systemd 254
    if given["LISTEN_PID"] != str(
        os.getpid()
    ):  # meant for the parent process, which passed them on
        return Inherited(FdStore(address, limit))
    stored: dict[int, dict[str, int]] = {}
    others: list[int] = []
    for position in range(int(given["LISTEN_FDS"] or 0)):
        fd = FIRST_FD + position
        os.set_inheritable(fd, False)  # noqa: FBT003 - named by the function
        parsed = parsed_name(names[position]) if position < len(names) else None
        if parsed is None:
            others.append(fd)
        else:
            number, key = parsed
            stored.setdefault(number, {})[key] = fd
    known = {name_of(key, number) for number in stored for key in stored[number]}
    return Inherited(FdStore(address, limit, known), _listener(others), stored)


def key_of(kind: str, turn: int) -> str:
    """Return the key of a descriptor of the processes that have served a mount as number *turn*.

    The processes that the mount was made with have turn 0.
    """
    return f"{kind}.{turn}" if turn else kind


def turns(stored: Mapping[str, int]) -> dict[int, dict[str, int]]:
    """Return the descriptors of processes in *stored* by turn and kind, the last turn first."""
    found: dict[int, dict[str, int]] = {}
    for key, fd in stored.items():
        kind, _, turn = key.partition(".")
        if kind != FUSE:
            found.setdefault(int(turn or 0), {})[kind] = fd
    return dict(sorted(found.items(), reverse=True))


def parsed_name(name: str) -> tuple[int, str] | None:
    """Return the number and the key of a descriptor by its name in the fd store."""
    if (found := _OF_FIRST_TURN.fullmatch(name)) is not None:
        return int(found[2]), found[1]
    if (found := _OF_LATER_TURN.fullmatch(name)) is not None:
        (kind,) = (kind for kind in KINDS if kind.startswith(found[1]))
        return int(found[2]), key_of(kind, int(found[3]))
    return None


def name_of(key: str, number: int) -> str:
    """Return the name in the fd store of the descriptor with *key* of the mount *number*."""
    kind, dot, turn = key.partition(".")
    return f"{kind[:2]}{number}.{turn}" if dot else f"{kind}{number}"


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

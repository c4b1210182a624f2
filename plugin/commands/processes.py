"""The processes of a volume, by their ids on the host: /proc of this process, proc(5).

A managed plugin has a pid namespace of its own, and tells ids in that namespace. The kernel tells
the command the plugin's id on the host (SO_PEERCRED of its socket). Another process of the plugin's
pid namespace has its id there as the last number of NSpid.
"""

import errno
import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import msgspec

from passthrough.linux import mountinfo
from passthrough.linux.mountinfo import FSTYPE, MountEntry
from plugin import process_stat
from plugin.children import Call, Failed, made

PROC: Final = Path("/proc")
_CONTAINER_ID_LENGTH: Final = 64
# A dead mount answers at once, and a worker in milliseconds.
_ANSWER_S: Final = 1.0

Place: TypeAlias = tuple[int, bytes]
"""A device and a path in it."""


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A process of a volume; a number that cannot be read is None."""

    role: str
    pid: int
    """On the host; 0 if it is not known."""
    pid_in_plugin: int
    uptime_s: float | None = None
    memory_bytes: int | None = None
    """Its share of memory: a page that several processes have counts in part (Pss)."""
    descriptors: int | None = None
    """Guards and worker share one table."""
    threads: int | None = None


class Usage(NamedTuple):
    """The processor time and the memory that a process has used, at a time."""

    at_ns: int
    """By CLOCK_MONOTONIC."""
    pid: int
    """On the host."""
    cpu_s: float
    memory_bytes: int | None
    """As in Process."""


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A mount namespace other than the host's and the plugin's that keeps the volume mounted."""

    pid: int
    """Its process with the lowest id."""
    command: str
    container: str
    """The first digits of the container's id; empty if there is none."""
    target: str
    """The mount point in that namespace."""


def on_host(plugin_pid: int, wanted: Collection[int]) -> Mapping[int, int]:
    """Return the ids on the host of the *wanted* processes of the plugin's pid namespace.

    *plugin_pid* is the plugin's own id on the host. Processes that are not visible are left out.
    """
    namespace = _link(plugin_pid, "pid")
    found = {}
    for pid in _pids() if namespace and wanted else ():
        if _link(pid, "pid") == namespace:
            number = int(_status(pid).get("NSpid", "0").split()[-1])
            if number in wanted:
                found[number] = pid
    return found


def described(role: str, pid: int, pid_in_plugin: int) -> Process:
    """Return the facts about the process *pid* of the host."""
    if not pid:
        return Process(role=role, pid=0, pid_in_plugin=pid_in_plugin)
    status = _status(pid)
    return Process(
        role=role,
        pid=pid,
        pid_in_plugin=pid_in_plugin,
        uptime_s=_uptime_s(pid),
        memory_bytes=_memory_bytes(pid),
        descriptors=_descriptors(pid),
        threads=int(status["Threads"]) if "Threads" in status else None,
    )


def usage(pid: int) -> Usage | None:
    """Return the usage of the process *pid* of the host; None if it has ended."""
    at_ns, stat = time.monotonic_ns(), process_stat.read(pid)
    return None if stat is None else Usage(at_ns, pid, stat.cpu_s, _memory_bytes(pid))


def users(plugin_pid: int, device: str) -> list[User]:
    """Return the mount namespaces that keep the file system *device* (MAJOR:MINOR) mounted.

    The namespaces of this process and of the plugin are left out. So are copies of their mounts
    that the kernel unmounts together with these, such as those below a bind mount of the host's
    root that follows the host, mount_namespaces(7).
    """
    major, _, minor = device.partition(":")
    number = os.makedev(int(major), int(minor))
    return _users(plugin_pid, lambda _, entry: entry.device == number)


def left(plugin_pid: int, fsname: str) -> list[User]:
    """Return the mount namespaces with a dead mount of the name *fsname*, without its plugin.

    An earlier plugin was killed, and no later one serves the mount. Mounts of this plugin, dead
    ones among them, are left out. The kernel does not tell the volume of a mount.
    """
    here = {entry.device for pid in (os.getpid(), plugin_pid) for entry, _ in _mounts(pid)}

    def is_left(pid: int, entry: MountEntry) -> bool:
        same = entry.source == os.fsencode(fsname)
        return same and entry.device not in here and _is_dead(pid, entry.target)

    return _users(plugin_pid, is_left)


def _users(plugin_pid: int, is_wanted: Callable[[int, MountEntry], bool]) -> list[User]:
    """Return the other mount namespaces that have a mount for which *is_wanted*."""
    seen, places = {""}, set[Place]()
    for pid in (os.getpid(), plugin_pid):
        seen.add(_link(pid, "mnt"))
        places.update(place for entry, place in _mounts(pid) if is_wanted(pid, entry))
    found = []
    for pid in _pids():
        namespace = _link(pid, "mnt")
        if namespace not in seen:
            seen.add(namespace)
            mounts = [
                (place in places, entry.target)
                for entry, place in _mounts(pid)
                if is_wanted(pid, entry) and not (entry.follows and place in places)
            ]
            if mounts:
                found.append(_user(pid, os.fsdecode(min(mounts)[1])))
    return found


def _is_dead(pid: int, target: bytes) -> bool:
    """Return whether no worker serves the mount at *target* of process *pid*.

    A worker that hangs does not answer, but serves.
    """

    def ask() -> bool:
        try:
            os.statvfs(os.fsencode(PROC / str(pid) / "root") + target)
        except OSError as error:
            return error.errno == errno.ENOTCONN
        return False

    try:
        return made(Call(ask, bool, _ANSWER_S))
    except Failed:
        return False


def _user(pid: int, target: str) -> User:
    command = _read(pid, "comm").strip()
    words = _read(pid, "cgroup").replace("-", "/").replace(".", "/").split("/")
    ids = [word.strip() for word in words if len(word.strip()) == _CONTAINER_ID_LENGTH]
    return User(pid=pid, command=command, container=ids[-1][:12] if ids else "", target=target)


def _mounts(pid: int) -> list[tuple[MountEntry, Place]]:
    """Return the mounts of passfs that the process sees, with their places."""
    try:
        entries = {each.mount_id: each for each in mountinfo.read(f"{PROC}/{pid}/mountinfo")}
    except OSError:  # the process has ended
        return []
    return [
        (entry, _place(entry, entries.get(entry.parent_id)))
        for entry in entries.values()
        if entry.fstype == FSTYPE
    ]


def _place(entry: MountEntry, parent: MountEntry | None) -> Place:
    """Return the place of a mount point in the file system of the mount *parent*."""
    if parent is None:  # outside of the process's root
        return 0, entry.target
    inner = os.path.relpath(entry.target, parent.target)
    return parent.device, os.path.normpath(os.path.join(parent.root, inner))


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir(PROC) if name.isdecimal())


def _link(pid: int, kind: str) -> str:
    """Return what identifies a namespace of *pid*; empty if that cannot be read."""
    with suppress(OSError):
        return os.readlink(PROC / str(pid) / "ns" / kind)
    return ""


def _read(pid: int, name: str) -> str:
    """Return the text of a file in /proc; empty if it cannot be read."""
    with suppress(OSError):
        return (PROC / str(pid) / name).read_text(errors="replace")
    return ""


def _status(pid: int) -> dict[str, str]:
    lines = (line.partition(":") for line in _read(pid, "status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def _uptime_s(pid: int) -> float | None:
    stat = process_stat.read(pid)
    if stat is None:
        return None
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - stat.started_s)


def _memory_bytes(pid: int) -> int | None:
    rows = (line.split() for line in _read(pid, "smaps_rollup").splitlines())
    shares = [int(row[1]) for row in rows if row[0] == "Pss:"]
    if shares:
        return 1024 * shares[0]
    resident = _status(pid).get("VmRSS", "").split()  # this process may not read the other file
    return 1024 * int(resident[0]) if resident else None


def _descriptors(pid: int) -> int | None:
    with suppress(OSError):
        return len(os.listdir(PROC / str(pid) / "fd"))
    return None

"""The checks of mounts: dead ones, sources that a mount hides, propagation.

No check asks a mount of passfs, which may hang: the mount tables in /proc have all that is needed.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from passthrough.linux import mountinfo
from passthrough.linux.mountinfo import FSTYPE, MountEntry
from plugin.children import Call, Failed, made
from plugin.commands import processes
from plugin.doctor.facts import Facts
from plugin.doctor.finding import Found, State, listed, unchecked

OPEN_S: Final = 2.0
_CONNECTION: Final = "fuse_connection:"


class Held(NamedTuple):
    """The FUSE connections that processes hold."""

    numbers: frozenset[int]
    known: bool
    """False if the kernel does not tell which connection a descriptor belongs to."""


class Place(msgspec.Struct, frozen=True):
    """A directory by its device, and its path in it."""

    device: int
    path: bytes


def dead(facts: Facts) -> Found:
    """Find mounts of passfs that no process serves, in all mount namespaces."""
    proc = facts.machine.proc
    seen = [
        (pid, each) for pid in _one_of_each_namespace(proc) for each in _passfs_mounts(proc, pid)
    ]
    if not seen:
        return Found(State.OK, "no mount of passfs")
    try:
        held = _held(proc)
    except PermissionError:
        return unchecked("this user may not see the descriptors of other processes")
    if not held.known:
        return Found(
            State.NOTE,
            f"mounts: {len(seen)}; this kernel does not tell which connections are held",
            "dead mounts of the plugin are `lost` in passfs ls, others are not found",
            "none is needed",
        )
    # A mount that ends meanwhile is in one look only.
    unserved = [
        (pid, each)
        for pid, each in seen
        if os.minor(each.device) not in held.numbers and each in _passfs_mounts(proc, pid)
    ]
    if not unserved:
        return Found(State.OK, f"mounts: {len(seen)}, all served")
    names = [
        os.fsdecode(each.target) + ("" if pid == 0 else f" (in the namespace of process {pid})")
        for pid, each in unserved
    ]
    here = next((os.fsdecode(each.target) for pid, each in unserved if pid == 0), "PATH")
    number = os.minor(unserved[0][1].device)
    return Found(
        State.WARNING,
        f"without a worker: {listed(names)}",
        "programs that use them get ENOTCONN",
        f"restart their containers; on the host, umount -l {here}. If programs hang there,"
        f" echo 1 > /sys/fs/fuse/connections/{number}/abort",
    )


def hidden(facts: Facts) -> Found:
    """Compare the directory of each mounted volume with the one that its path leads to now."""
    try:
        served = list(_served(facts))
    except PermissionError:
        return unchecked("this user may not see the mounts of a worker")
    left_out = _left_out(facts, {name for name, _, _ in served})
    if not served and not left_out:
        return Found(State.OK, "no volume is mounted")
    mounts = mountinfo.read(str(facts.machine.proc / "self/mountinfo"))
    other = [
        f"{name} ({path})"
        for name, path, root in served
        # A path with a symbolic link leads elsewhere than its text: the second look follows it.
        if _named(mounts, path) != root and _opened(path) != root
    ]
    if other:
        return Found(
            State.WARNING,
            f"the path leads to another directory than the served one: {listed(other)}",
            "containers go on with the directory of the time when the volume was mounted; the"
            " host sees another one, such as that of a later mount",
            "unmount what covers it, or restart the containers that have the volume",
        )
    found = f"checked: {len(served)}, each with the directory at its path" if served else ""
    if left_out:
        return Found(
            State.NOTE,
            f"{found}{'; ' * bool(found)}not checked: {listed(left_out)}",
            "a worker without a sandbox does not tell which directory it serves, nor does a plugin"
            " that sees no path of the host",
            "none is needed",
        )
    return Found(State.OK, found)


def propagation(facts: Facts) -> Found:
    """Find private mounts below sources: disks that are mounted later do not appear in volumes."""
    mounts = mountinfo.read(str(facts.machine.proc / "self/mountinfo"))
    paths = ["/", os.path.realpath(facts.machine.data_dir), *(path for _, path in _paths(facts))]
    above = {mountinfo.covering(mounts, os.fsencode(path)) for path in paths}
    private = sorted(os.fsdecode(mount.target) for mount in above if not mount.follows)
    if private:
        return Found(
            State.WARNING,
            f"private: {listed(private)}",
            "disks that are mounted there later do not appear in volumes, until the plugin starts"
            " again",
            f"mount --make-rshared {private[0]}, before the plugin starts",
        )
    return Found(
        State.OK, f"shared: {listed(sorted({os.fsdecode(each.target) for each in above}))}"
    )


def visible(facts: Facts) -> Found:
    """Find mounts that the plugin has and this namespace does not: containers lack them, too."""
    proc = facts.machine.proc
    if not facts.plugin.pid:
        return Found(State.OK, "no plugin to look at")
    inside = {each.device for each in _passfs_mounts(proc, facts.plugin.pid)}
    outside = {each.device for each in _passfs_mounts(proc, 0)}
    if lacking := inside - outside:
        return Found(
            State.ERROR,
            f"not visible on the host: {len(lacking)} of {len(inside)} mounts",
            "new containers get an empty directory in place of the volume",
            "give the unit no mount namespace of its own (PrivateTmp=, ProtectSystem= and the"
            " like); for the managed plugin, mount --make-rshared on the engine's root directory",
        )
    return Found(State.OK, f"mounts: {len(inside)}, all visible on the host")


def _one_of_each_namespace(proc: Path) -> list[int]:
    """Return the lowest process id in each mount namespace; 0 is this process, and the first."""
    seen, found = {_link(proc / "self/ns/mnt")}, [0]
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdecimal()):
        namespace = _link(proc / str(pid) / "ns/mnt")
        if namespace and namespace not in seen:
            seen.add(namespace)
            found.append(pid)
    return found


def _passfs_mounts(proc: Path, pid: int) -> list[MountEntry]:
    """Return the mounts of passfs that a process sees; none if it has ended."""
    with suppress(OSError):
        path = proc / (str(pid) if pid else "self") / "mountinfo"
        return [each for each in mountinfo.read(str(path)) if each.fstype == FSTYPE]
    return []


def _held(proc: Path) -> Held:
    """Look at all descriptors of /dev/fuse, fdinfo in proc(5).

    Raises:
        PermissionError: this user may not see the descriptors of a process.
    """
    numbers: set[int] = set()
    descriptors = 0
    for info in _fuse_descriptors(proc):
        descriptors += 1
        numbers.update(
            int(line.split()[1]) for line in info.splitlines() if line.startswith(_CONNECTION)
        )
    return Held(frozenset(numbers), bool(numbers) or not descriptors)


def _fuse_descriptors(proc: Path) -> Iterator[str]:
    """Yield what fdinfo tells about each descriptor of /dev/fuse.

    Raises:
        PermissionError: this user may not see the descriptors of a process.
    """
    for pid in filter(str.isdecimal, os.listdir(proc)):
        with suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
            for number in os.listdir(proc / pid / "fd"):
                if _link(proc / pid / "fd" / number).endswith("/fuse"):
                    yield (proc / pid / "fdinfo" / number).read_text()


def _paths(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield the name of each volume, with the host's path of its directory."""
    for name, status in facts.statuses().items():
        path = str(status.get("source", status.get("data", "")))
        if path.startswith("/"):  # the plugin may not know the host's path
            yield name, path


def _served(facts: Facts) -> Iterator[tuple[str, str, Place]]:
    """Yield each mounted volume with its path, and the place of the directory that it serves.

    Raises:
        PermissionError: this user may not see the mounts of a worker.
    """
    statuses = facts.statuses()
    workers = _workers(facts, statuses)
    for name, path in _paths(facts):
        with suppress(FileNotFoundError, ProcessLookupError, LookupError):  # it has ended
            table = facts.machine.proc / str(workers.get(name, 0)) / "mountinfo"
            root = _root(mountinfo.read(str(table)))
            # With sandbox=none the worker's root is the plugin's own.
            if statuses[name].get("options", {}).get("sandbox") == "namespace":
                yield name, path, root


def _left_out(facts: Facts, served: Collection[str]) -> list[str]:
    """Return the mounted volumes that are not among *served*."""
    return [
        name
        for name, status in facts.statuses().items()
        if status.get("mounted") and name not in served
    ]


def _workers(facts: Facts, statuses: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return the process id on this host of the worker of each mounted volume."""
    told = {
        name: int(status.get("worker_pid") or status.get("worker_pid_in_plugin") or 0)
        for name, status in statuses.items()
    }
    # A plugin in a container may take its own ids for those of the host.
    namespace = _link(facts.process / "ns/pid")
    proc = facts.machine.proc
    inner = {pid for pid in told.values() if _link(proc / str(pid) / "ns/pid") != namespace}
    outer = processes.on_host(facts.plugin.pid, inner - {0})
    return {name: outer.get(pid, 0) if pid in inner else pid for name, pid in told.items()}


def _root(mounts: list[MountEntry]) -> Place:
    """Return the place of the root directory of a process with these *mounts*."""
    ids = {mount.mount_id for mount in mounts}
    lowest = next(mount for mount in mounts if mount.parent_id not in ids)
    return Place(lowest.device, lowest.root)


def _named(mounts: list[MountEntry], path: str) -> Place:
    return Place(*mountinfo.place(mounts, os.fsencode(path)))


def _opened(path: str) -> Place | None:
    """Return the place of the directory that *path* leads to; None if it cannot be opened."""

    def place() -> Place:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return Place(*mountinfo.position(mountinfo.read(), fd))

    try:
        return made(Call(place, Place, OPEN_S))
    except Failed:
        return None


def _link(path: Path) -> str:
    """Return the text of a link in /proc; empty if it cannot be read."""
    with suppress(OSError):
        return os.readlink(path)
    return ""

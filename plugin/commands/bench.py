"""`passfs bench`: a mounted volume measured against its own source.

Both are measured in directories that the command makes in the source and removes again. The plugin
keeps the volume mounted meanwhile, by a reference as a container has it.

The command acts as root where containers may change everything. So it works below two copies of
mounts, on which no link leads anywhere and no device opens, by descriptors of its directories.
"""

import errno
import fcntl
import os
import secrets
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NamedTuple

import msgspec

from passthrough.linux import mountinfo, privileges
from plugin.commands import units
from plugin.commands.asking import CommandError, Plugin, path_of
from plugin.commands.document import Block, Pairs, Table
from plugin.commands.views import status_of
from plugin.commands.workloads import WORKLOADS, Site, Workload, clear, measured
from plugin.protocol import BENCH_ID, DetailsReply, MountpointReply, Reply

MOUNT_S: Final = 60.0
"""The deadline of Mount in volume_locks.py is shorter."""
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals after which the command removes what it has made, and ends."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SPARE: Final = 4  # times the bytes of a round, so that other programs do not run out of space
_ROUND_BYTES: Final = 70 << 20


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one workload."""

    workload: str
    unit: str
    source_s: float | None
    """The median time of a unit in the source, in seconds; None: refused."""
    volume_s: float | None
    """The same in the volume."""
    ratio: float | None
    """The median over the rounds of the volume's time by the source's."""
    refusal: str = ""
    """The reason of a refused call; empty if none was refused."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A volume measured."""

    volume: str
    source: str
    rounds: int
    load: float
    """The mean number of processes that wanted to run in the last minute, before the command."""
    processors: int
    lines: Sequence[Line]


class _Subjects(NamedTuple):
    """Descriptors of the two directories that are compared."""

    source: int
    volume: int


def bench(
    plugin: Plugin, volume: str, rounds: int, size: float, progress: Callable[[str], object]
) -> Result:
    """Measure *volume*; call *progress* with the name of each workload that begins.

    Raises:
        CommandError: the volume cannot be measured.
    """
    load = os.getloadavg()[0]
    left = plugin.ask(path_of(volume), DetailsReply)
    with _alone(plugin), _held(plugin, volume, left):
        details = plugin.ask(path_of(volume), DetailsReply)
        status = status_of(details.volume)
        source = str(status.get("source", status.get("data", "")))
        with _directories(source, details, size) as subjects:
            lines = []
            for workload in WORKLOADS:
                progress(workload.name)
                lines.append(_line(workload, subjects, rounds, size))
    return Result(
        volume=volume,
        source=source,
        rounds=rounds,
        load=load,
        processors=os.cpu_count() or 1,
        lines=lines,
    )


@contextmanager
def _alone(plugin: Plugin) -> Iterator[None]:
    """Let no other bench run: it would be measured as well, and drop the reference of this one."""
    with ExitStack() as stack:
        try:
            fd = os.open(plugin.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CommandError(
                "another `passfs bench` runs; try again when it has ended."
            ) from error
        except OSError as error:
            raise CommandError(
                f"{plugin.directory} cannot be locked against another `passfs bench`:"
                f" {error.strerror}."
            ) from error
        yield


@contextmanager
def _held(plugin: Plugin, volume: str, found: DetailsReply) -> Iterator[None]:
    """Keep *volume* mounted."""
    path = path_of(volume, "bench")
    left = found.users.get(BENCH_ID, 0) + found.dead.get(BENCH_ID, 0)
    for _ in range(left):  # by a command that was killed
        plugin.ask(path, Reply, method="DELETE", limit_s=MOUNT_S)
    try:
        plugin.ask(path, MountpointReply, method="POST", limit_s=MOUNT_S)
        yield
    finally:  # also after an answer that has not come: the plugin may mount nevertheless
        with _undisturbed():
            plugin.ask(path, Reply, method="DELETE", limit_s=MOUNT_S)


@contextmanager
def _directories(source: str, found: DetailsReply, size: float) -> Iterator[_Subjects]:
    """Make a directory through the volume, and yield it by both ways; remove it at the end.

    Raises:
        CommandError: it cannot be made, or there is too little space.
    """
    if not os.path.isabs(source):
        raise CommandError(
            "the plugin does not know the path of the volume's directory on this host, so the"
            " directory cannot be measured."
        )
    name = f".passfs-bench-{secrets.token_hex(8)}"
    with ExitStack() as stack:
        mount = _mount_point(found)
        try:
            roots = _Subjects(*(_inert(stack, path) for path in (source, mount)))
            space = os.fstatvfs(roots.source)
            if space.f_bavail * space.f_frsize < size * _SPARE * _ROUND_BYTES:
                raise CommandError(
                    f"{source} has too little free space to be measured; --size 0.1 takes a tenth."
                )
            stack.callback(_remove, roots, name)  # before: a signal may come right after mkdir(2)
            os.mkdir(name, 0o700, dir_fd=roots.volume)
        except OSError as error:
            raise CommandError(
                "the volume takes no files of this user, so it cannot be measured:"
                f" {error.strerror}."
            ) from error
        try:
            directories = [_new_directory(stack, root, name) for root in roots]
        except OSError as error:
            raise CommandError(
                f"{source} is not the directory on this host that the volume serves."
            ) from error
        yield _Subjects(*directories)


def _mount_point(found: DetailsReply) -> str:
    """Return the mount point of a mounted volume in the mount namespace of this process."""
    device = "" if found.mount is None else found.mount.device
    for mount in mountinfo.read():
        if f"{os.major(mount.device)}:{os.minor(mount.device)}" == device and mount.root == b"/":
            return os.fsdecode(mount.target)
    raise CommandError(
        "the volume's mount is not visible on this host, so it cannot be measured. `passfs doctor`"
        " may know why."
    )


def _inert(stack: ExitStack, path: str) -> int:
    """Return a copy of the mount at *path*: no link is followed on it, and no device opens."""
    found = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        copy = privileges.clone_tree(found, b"", recursive=False)
    finally:
        os.close(found)
    stack.callback(os.close, copy)
    privileges.change_tree(copy, privileges.INERT, privileges.MS_PRIVATE)
    return copy


def _new_directory(stack: ExitStack, parent: int, name: str) -> int:
    """Open a new directory, which is empty unless another program has replaced it.

    Raises:
        OSError: it is not there, or no empty directory.
    """
    fd = os.open(name, _DIRECTORY, dir_fd=parent)
    stack.callback(os.close, fd)
    if os.listdir(fd):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    return fd


def _remove(parents: _Subjects, name: str) -> None:
    """Remove an empty directory; a file in it is of another program, and stays."""
    with _undisturbed():
        try:
            os.rmdir(name, dir_fd=parents.volume)
        except OSError:
            with suppress(OSError):
                os.rmdir(name, dir_fd=parents.source)


def _line(workload: Workload, subjects: _Subjects, rounds: int, size: float) -> Line:
    """Measure source and volume in turn."""
    times: list[tuple[float, float]] = []
    try:
        for number in range(rounds):
            # Each goes first in every other round, so that a slow phase of the machine hits both.
            order = (subjects.source, subjects.volume)[:: -1 if number % 2 else 1]
            found = {each: _time(workload, each, subjects.source, size) for each in order}
            times.append((found[subjects.source], found[subjects.volume]))
    except OSError as error:
        refusal = error.strerror or str(error)
        return Line(
            workload=workload.name,
            unit=workload.unit,
            refusal=refusal,
            source_s=None,
            volume_s=None,
            ratio=None,
        )
    return Line(
        workload=workload.name,
        unit=workload.unit,
        source_s=statistics.median(source for source, _ in times),
        volume_s=statistics.median(volume for _, volume in times),
        ratio=statistics.median(volume / source for source, volume in times),
    )


def _time(workload: Workload, parent: int, bare: int, size: float) -> float:
    """Measure *workload* in a new directory: no cache knows its names."""
    name = secrets.token_hex(8)
    with ExitStack() as stack:
        stack.callback(_remove, _Subjects(bare, parent), name)
        os.mkdir(name, 0o700, dir_fd=parent)
        directory, same = (_new_directory(stack, each, name) for each in (parent, bare))
        at = Site(directory, same, size, {})
        stack.callback(_clear, at)
        return measured(workload, at)


def _clear(at: Site) -> None:
    with _undisturbed():
        clear(at)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let a signal that ends the command wait until the block, which cleans up, has ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def document(result: Result) -> list[Block]:
    """Return the document of `passfs bench`."""
    return [
        Pairs(
            "",
            [
                ("volume", result.volume),
                ("source", result.source),
                ("rounds", str(result.rounds)),
                ("load before", f"{result.load:.1f} on {result.processors} processors"),
            ],
        ),
        Table(
            "Times, and how many times as long the volume takes",
            ("WORKLOAD", "UNIT", "SOURCE", "VOLUME", "RATIO"),
            [
                (
                    *(line.workload, line.unit, _time_of(line.source_s), _time_of(line.volume_s)),
                    line.refusal if line.ratio is None else f"{line.ratio:.2f}",
                )
                for line in result.lines
            ],
        ),
    ]


def _time_of(unit_s: float | None) -> str:
    return units.time(None if unit_s is None else 1e6 * unit_s)

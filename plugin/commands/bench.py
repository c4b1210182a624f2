"""`passfs bench`: a mounted volume measured against its own source.

Both are measured in directories that the command makes in the source and removes again. The plugin
keeps the volume mounted meanwhile, by a reference as a container has it.
"""

import fcntl
import os
import secrets
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NamedTuple

import msgspec

from plugin.commands import units
from plugin.commands.asking import CommandError, Plugin, path_of
from plugin.commands.document import Block, Pairs, Table
from plugin.commands.processes import PROC
from plugin.commands.views import status_of
from plugin.commands.workloads import WORKLOADS, Site, Workload, clear, measured
from plugin.protocol import BENCH_ID, DetailsReply, MountpointReply, Reply

MOUNT_S: Final = 60.0
"""The deadline of Mount in volume_locks.py is shorter."""
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals after which the command removes what it has made, and ends."""
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
    """The two directories that are compared."""

    source: str
    volume: str


def bench(
    plugin: Plugin, volume: str, rounds: int, size: float, progress: Callable[[str], object]
) -> Result:
    """Measure *volume*; call *progress* with the name of each workload that begins.

    Raises:
        CommandError: the volume cannot be measured.
    """
    load = os.getloadavg()[0]
    left = plugin.ask(path_of(volume), DetailsReply)
    with _alone(plugin), _held(plugin, volume, left) as mountpoint:
        details = plugin.ask(path_of(volume), DetailsReply)
        status = status_of(details.volume)
        source = str(status.get("source", status.get("data", "")))
        mount = f"{PROC}/{plugin.pid}/root{mountpoint}" if plugin.pid else mountpoint
        with _directory(source, mount, size) as subjects:
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
def _held(plugin: Plugin, volume: str, found: DetailsReply) -> Iterator[str]:
    """Keep *volume* mounted, and yield its mount point as the plugin sees it."""
    path = path_of(volume, "bench")
    left = found.users.get(BENCH_ID, 0) + found.dead.get(BENCH_ID, 0)
    for _ in range(left):  # by a command that was killed
        plugin.ask(path, Reply, method="DELETE", limit_s=MOUNT_S)
    try:
        yield plugin.ask(path, MountpointReply, method="POST", limit_s=MOUNT_S).mountpoint
    finally:  # also after an answer that has not come: the plugin may mount nevertheless
        with _undisturbed():
            plugin.ask(path, Reply, method="DELETE", limit_s=MOUNT_S)


@contextmanager
def _directory(source: str, mount: str, size: float) -> Iterator[_Subjects]:
    """Make a directory through the volume, and yield its two paths; remove it at the end.

    Raises:
        CommandError: it cannot be made, or there is too little space.
    """
    name = f".passfs-bench-{secrets.token_hex(8)}"
    subjects = _Subjects(os.path.join(source, name), os.path.join(mount, name))
    try:
        space = os.statvfs(source)
        if space.f_bavail * space.f_frsize < size * _SPARE * _ROUND_BYTES:
            raise CommandError(
                f"{source} has too little free space to be measured; --size 0.1 takes a tenth."
            )
        os.mkdir(subjects.volume, 0o700)
    except OSError as error:
        raise CommandError(
            f"the volume takes no files of this user, so it cannot be measured: {error.strerror}."
        ) from error
    try:
        if not os.path.isdir(subjects.source):
            raise CommandError(
                f"{source} is not the directory on this host that the volume serves."
            )
        yield subjects
    finally:
        with _undisturbed():
            _remove(subjects)


def _remove(at: _Subjects) -> None:
    """Remove an empty directory; a file in it is of another program, and stays."""
    try:
        os.rmdir(at.volume)
    except OSError:
        with suppress(OSError):
            os.rmdir(at.source)


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


def _time(workload: Workload, parent: str, bare: str, size: float) -> float:
    """Measure *workload* in a new directory, whose names no cache knows."""
    name = secrets.token_hex(8)
    at = Site(os.path.join(parent, name), os.path.join(bare, name), size)
    try:
        os.mkdir(at.directory, 0o700)
        return measured(workload, at)
    finally:
        with _undisturbed():
            clear(at)
            _remove(_Subjects(at.bare, at.directory))


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

"""The volumes by their load, as `passfs top` shows them; no I/O."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec

from plugin.commands import load, units
from plugin.commands.document import GAP, Block, Pairs, Table
from plugin.commands.load import Reading
from plugin.commands.processes import Usage
from plugin.protocol import ReplyPart, VolumeCounters
from plugin.volumes.health import Health

NAME_WIDTH: Final = 24
"""Of the names on a terminal; longer ones are cut off."""
# The first ones are shown on a narrow terminal, too.
_COLUMNS: Final = (
    *("NAME", "HEALTH", "REQUESTS/S", "BUSY", "MEAN", "ERRORS/S"),
    *("CPU", "MEMORY", "READ/S", "WRITTEN/S", "INODES"),
)


class CountedMounts(ReplyPart, frozen=True, kw_only=True):
    """A CountersReply as the command reads it."""

    at_ns: int
    volumes: Sequence[VolumeCounters]


class Measured(NamedTuple):
    """A volume that has a mount, at a time."""

    reading: Reading
    health: Health
    usage: Usage | None
    """Of its worker; None if that process is not visible."""


class Sample(NamedTuple):
    """All volumes that have a mount, at a time."""

    at_ns: int
    volumes: Mapping[str, Measured]


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """A volume in `passfs top`; a number that is not known is None."""

    name: str
    health: str
    reason: str
    worker: int | None
    """The process id of the worker on the host."""
    requests_per_s: float | None
    busy: float | None
    """As in Load."""
    mean_us: float | None
    errors_per_s: float | None
    read_bytes_per_s: float | None
    written_bytes_per_s: float | None
    """By the worker, without data that the kernel passes through."""
    inodes: int | None
    cpu: float | None
    """Processor time of the worker per time: 1 for one processor."""
    memory_bytes: int | None
    """As in Process."""


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """The volumes that have a mount, the one with most load first."""

    measured_s: float | None
    """The time between the two samples; None if there was one."""
    volumes: Sequence[Ranked]


def ranking(before: Sample | None, after: Sample) -> Ranking:
    """Return the volumes of *after* with their loads since *before*, an earlier sample."""
    rows = [_ranked(before, name, after.volumes[name]) for name in after.volumes]
    rows.sort(key=lambda row: (-(row.busy or 0), -(row.requests_per_s or 0), row.name))
    measured_s = None if before is None else (after.at_ns - before.at_ns) / 1e9
    return Ranking(measured_s=measured_s, volumes=rows)


def ranking_document(found: Ranking) -> list[Block]:
    """Return the document of `passfs top`."""
    if not found.volumes:
        return [Pairs("", [("top", "no volume is mounted")])]
    return [Table("", _COLUMNS, [_row(each) for each in found.volumes])]


def summary(found: Ranking) -> str:
    """Return the sums of all volumes in a line."""
    requests = sum(each.requests_per_s or 0 for each in found.volumes)
    busy = sum(each.busy or 0 for each in found.volumes)
    words = [f"mounts: {len(found.volumes)}"]
    if found.measured_s is not None:
        words += [f"requests/s: {units.number(requests)}", f"busy: {units.percent(busy)}"]
    return GAP.join(words)


def fitting(table: Table, width: int, height: int) -> Table:
    """Return *table* with as many columns and rows as fit into *width* and *height*.

    The header takes a line of the height, and so does the number of rows that are left out.
    """
    widths = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]
    widths[0] = min(widths[0], NAME_WIDTH)
    ends = [end - len(GAP) for end in accumulate(each + len(GAP) for each in widths)]
    columns = max(1, sum(end <= width for end in ends))
    room = max(1, height - 1)
    rows = [row[:columns] for row in table.rows]
    if len(rows) > room:
        more = f"{len(rows) - room + 1} more"
        rows = [*rows[: room - 1], (more, *[" "] * (columns - 1))]
    return Table(table.title, table.columns[:columns], rows)


def _ranked(before: Sample | None, name: str, now: Measured) -> Ranked:
    found = None
    if before is not None:
        earlier = before.volumes.get(name)
        # A volume that was not there has been mounted since, and has counted from zero.
        then = Reading(before.at_ns, None) if earlier is None else earlier.reading
        found = load.load(then, now.reading)
    usage = now.usage
    return Ranked(
        name=name,
        health=now.health.word,
        reason=now.health.reason,
        worker=None if usage is None else usage.pid,
        requests_per_s=None if found is None else found.requests_per_s,
        busy=None if found is None else found.busy,
        mean_us=None if found is None else found.mean_us,
        errors_per_s=None if found is None else found.errors_per_s,
        read_bytes_per_s=None if found is None else found.read_per_s,
        written_bytes_per_s=None if found is None else found.written_per_s,
        inodes=None if now.reading.counters is None else now.reading.counters.inodes,
        cpu=None if before is None else _cpu(before.volumes.get(name), usage),
        memory_bytes=None if usage is None else usage.memory_bytes,
    )


def _cpu(before: Measured | None, now: Usage | None) -> float | None:
    """Return the processor time per time; None if the worker is another process than before."""
    then = None if before is None else before.usage
    if now is None or then is None or then.pid != now.pid or now.at_ns <= then.at_ns:
        return None
    return max(0.0, now.cpu_s - then.cpu_s) / (now.at_ns - then.at_ns) * 1e9


def _row(each: Ranked) -> tuple[str, ...]:
    return (
        each.name,
        each.health,
        units.number(each.requests_per_s),
        units.percent(each.busy),
        units.time(each.mean_us),
        units.number(each.errors_per_s),
        units.percent(each.cpu),
        units.size(each.memory_bytes),
        units.size(each.read_bytes_per_s),
        units.size(each.written_bytes_per_s),
        "" if each.inodes is None else str(each.inodes),
    )

"""One volume as a document; no I/O."""

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from plugin.commands import load, units
from plugin.commands.directory import Directory
from plugin.commands.document import Block, Pairs, Table
from plugin.commands.load import ErrorLoad, OperationLoad, Reading
from plugin.commands.process_view import process_table
from plugin.commands.processes import Process, User
from plugin.commands.views import status_of
from plugin.counted import Counters
from plugin.protocol import DetailsReply, Feature
from plugin.volumes.health import health

_UNCOUNTED: Final = "not known: its worker is of an older passfs"
_ENDED: Final = "not known: the mount has ended"
_UNKNOWN: Final = "not known: libfuse has agreed on them, or a worker of an older passfs"


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A volume in `passfs status`."""

    name: str
    created_at: str
    mountpoint: str
    directory: Directory | None
    """Whose directory it is on the host; None if that is not known."""
    state: str
    health: str
    reason: str
    status: dict[str, Any]
    """As in `docker volume inspect`."""
    references: Mapping[str, int]
    """By mount id."""
    dead_references: Mapping[str, int]
    device: str
    """MAJOR:MINOR; empty if it is not mounted."""
    processes: Sequence[Process]
    users: Sequence[User]
    measured_s: float | None
    """The time for which the rates of requests were measured; None if they were not."""
    operations: Sequence[OperationLoad] | None
    """None if the counters are not known."""
    errors: Sequence[ErrorLoad] | None
    numbers: Mapping[str, int] | None
    """Opens, bytes, inodes and open files, as in Counters; None if they are not known."""
    features: Sequence[Mapping[str, Any]]
    log: Sequence[str]


def view(
    before: DetailsReply | None,
    reply: DetailsReply,
    processes: Sequence[Process],
    users: Sequence[User],
    directory: Directory | None = None,
) -> View:
    """Return the volume of *reply* with its *processes* and *users*.

    *before* is an earlier reply; None: the rates of requests are not measured.
    """
    status = status_of(reply.volume)
    word, reason = health(status)
    earlier = None if before is None else _reading(before)
    counted = reply.counters is not None
    return View(
        name=reply.volume.name,
        created_at=f"{reply.volume.created_at:%Y-%m-%dT%H:%M:%SZ}",
        mountpoint=reply.volume.mountpoint,
        directory=directory,
        state=reply.state,
        health=word,
        reason=reason,
        status=status,
        references=reply.users,
        dead_references=reply.dead,
        device="" if reply.mount is None else reply.mount.device,
        processes=processes,
        users=users,
        measured_s=(reply.at_ns - before.at_ns) / 1e9 if before is not None and counted else None,
        operations=load.operations(earlier, _reading(reply)) if counted else None,
        errors=load.errors(earlier, _reading(reply)) if counted else None,
        numbers=None if reply.counters is None else _numbers(reply.counters),
        features=[_feature(feature) for feature in reply.features],
        log=[] if reply.mount is None else reply.mount.log,
    )


def document(shown: View) -> list[Block]:
    """Return the document of `passfs status VOLUME`."""
    options = shown.status.get("options", {})
    blocks: list[Block] = [
        _summary(shown),
        process_table(shown.processes),
        _references(shown),
        Table(
            "Users",
            ("PID", "COMMAND", "CONTAINER", "MOUNT POINT"),
            [(str(each.pid), each.command, each.container, each.target) for each in shown.users],
        ),
        Table(
            "Requests",
            ("OPERATION", "REQUESTS", "PER SECOND", "MEAN", "MEDIAN <", "P99 <"),
            [_operation(each) for each in shown.operations or []],
        ),
        Table(
            "Errors",
            ("ERROR", "REQUESTS", "PER SECOND", "MEANING"),
            [_error(each) for each in shown.errors or []],
        ),
        Pairs("Options in force", [(name, str(value)) for name, value in options.items()]),
        Pairs(
            "Options of the next mount that differ",
            [(name, str(value)) for name, value in shown.status.get("next_mount", {}).items()],
        ),
        Table(
            "Features of FUSE",
            ("FEATURE", "STATE", "REASON"),
            [(each["name"], each["state"], each["reason"]) for each in shown.features],
        ),
        Table("Last lines of its log", (), [(line,) for line in shown.log]),
    ]
    return [block for block in blocks if block.rows]


def _summary(shown: View) -> Pairs:
    own = {"options", "notes", "mounted", "references", "dead_references", "error", "waiting"}
    own |= {"worker_pid", "worker_pid_in_plugin", "next_mount"}
    uncounted = _UNCOUNTED if shown.processes else _ENDED
    return Pairs(
        "",
        [
            ("volume", shown.name),
            ("health", f"{shown.health}: {shown.reason}" if shown.reason else shown.health),
            ("state", shown.state),
            *((name, str(value)) for name, value in shown.status.items() if name not in own),
            *([("belongs to", str(shown.directory))] if shown.directory else []),
            *([("features", _UNKNOWN)] if shown.device and not shown.features else []),
            *([("requests", uncounted)] if shown.device and shown.operations is None else []),
            *([] if shown.numbers is None else _held(shown.numbers)),
            ("mount point", shown.mountpoint),
            ("device", shown.device),
            ("created", shown.created_at),
            *(("note", str(note)) for note in shown.status.get("notes", [])),
        ],
    )


def _numbers(counters: Counters) -> dict[str, int]:
    """Return the numbers of *counters*, without those of requests."""
    numbers = msgspec.structs.asdict(counters)
    return {name: numbers[name] for name in numbers if name not in {"operations", "errors"}}


def _held(numbers: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the lines on data, inodes and open files."""
    opens, passing = numbers["opens"], numbers["passing_opens"]
    share = f": {units.percent(min(passing / opens, 1.0))}" if opens else ""
    read, written = units.size(numbers["bytes_read"]), units.size(numbers["bytes_written"])
    return [
        ("passed through", f"{passing} of {opens} opens{share}"),
        ("data by the worker", f"{read} read, {written} written"),
        ("inodes", str(numbers["inodes"])),
        ("open files", f"{numbers['open_files']}, {numbers['passing_files']} passed through"),
        ("open directories", str(numbers["open_directories"])),
    ]


def _references(shown: View) -> Table:
    rows = [
        (mount_id, str(shown.references.get(mount_id, 0)), str(dead))
        for mount_id in {**shown.references, **shown.dead_references}
        for dead in [shown.dead_references.get(mount_id, 0)]
    ]
    return Table("References", ("MOUNT ID", "COUNT", "DEAD"), rows)


def _reading(reply: DetailsReply) -> Reading:
    return Reading(reply.at_ns, reply.counters, 0 if reply.mount is None else reply.mount.number)


def _operation(each: OperationLoad) -> tuple[str, ...]:
    return (
        each.name,
        str(each.requests),
        units.number(each.per_second),
        units.time(each.mean_us),
        units.time(each.median_below_us),
        units.time(each.p99_below_us),
    )


def _error(each: ErrorLoad) -> tuple[str, ...]:
    number = getattr(errno, each.name, 0)
    meaning = os.strerror(number) if number else ""
    return each.name, str(each.requests), units.number(each.per_second), meaning


def _feature(feature: Feature) -> dict[str, Any]:
    state = "on" if feature.used else "missing" if feature.wanted else "off"
    return {"name": feature.name, "state": state, "reason": feature.reason}

"""The plugin's answers as rows and documents; no I/O."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from plugin.commands.document import Block, Pairs, Table
from plugin.commands.processes import Process, User
from plugin.protocol import DetailsReply, Feature, HealthReply, ReplyPart, VolumeInfo
from plugin.volumes.health import health

_UNITS: Final = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
_MIB: Final = 1 << 20
_UNKNOWN: Final = "not known: libfuse has agreed on them, or a worker of an older passfs"


class ListedVolumes(ReplyPart, frozen=True, kw_only=True):
    """A ListReply as the command reads it."""

    volumes: Sequence[VolumeInfo]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A volume in `passfs ls`."""

    name: str
    source: str
    own: bool
    """True if the volume has a directory of its own, and no source."""
    cache: str
    session: str
    users: int
    """The count of references."""
    dead_users: int
    """The count of references to mounts that have ended."""
    health: str
    reason: str


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A volume in `passfs status`."""

    name: str
    created_at: str
    mountpoint: str
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
    features: Sequence[Mapping[str, Any]]
    log: Sequence[str]


class PluginView(msgspec.Struct, frozen=True, kw_only=True):
    """The plugin in `passfs status` without a volume."""

    program: str
    """The identity of its program."""
    volumes: int
    mounted: int
    lost: int
    process: Process


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that `passfs rm` has removed."""

    name: str
    references: int
    """The count of references that were dropped."""


def rows(reply: ListedVolumes) -> list[Row]:
    """Return the volumes of *reply*, by name."""
    return [_row(volume) for volume in sorted(reply.volumes, key=lambda volume: volume.name)]


def listing(found: Sequence[Row]) -> list[Block]:
    """Return the document of `passfs ls`."""
    columns = ("NAME", "SOURCE", "CACHE", "SESSION", "USERS", "HEALTH")
    lines = [
        (
            *(row.name, row.source, row.cache, row.session),
            f"{row.users}, {row.dead_users} dead" if row.dead_users else str(row.users),
            f"{row.health}: {row.reason}" if row.reason else row.health,
        )
        for row in found
    ]
    return [Table("", columns, lines)]


def view(reply: DetailsReply, processes: Sequence[Process], users: Sequence[User]) -> View:
    """Return the volume of *reply* with its *processes* and *users*."""
    status = status_of(reply.volume)
    word, reason = health(status)
    return View(
        name=reply.volume.name,
        created_at=f"{reply.volume.created_at:%Y-%m-%dT%H:%M:%SZ}",
        mountpoint=reply.volume.mountpoint,
        state=reply.state,
        health=word,
        reason=reason,
        status=status,
        references=reply.users,
        dead_references=reply.dead,
        device="" if reply.mount is None else reply.mount.device,
        processes=processes,
        users=users,
        features=[_feature(feature) for feature in reply.features],
        log=[] if reply.mount is None else reply.mount.log,
    )


def document(shown: View) -> list[Block]:
    """Return the document of `passfs status VOLUME`."""
    status = shown.status
    options = status.get("options", {})
    own = {"options", "notes", "mounted", "references", "dead_references", "error", "waiting"}
    own |= {"worker_pid", "worker_pid_in_plugin"}
    blocks: list[Block] = [
        Pairs(
            "",
            [
                ("volume", shown.name),
                ("health", f"{shown.health}: {shown.reason}" if shown.reason else shown.health),
                ("state", shown.state),
                *((name, str(value)) for name, value in status.items() if name not in own),
                *([("features", _UNKNOWN)] if shown.device and not shown.features else []),
                ("mount point", shown.mountpoint),
                ("device", shown.device),
                ("created", shown.created_at),
                *(("note", str(note)) for note in status.get("notes", [])),
            ],
        ),
        Table("Processes", _PROCESS_COLUMNS, [_process(each) for each in shown.processes]),
        Table(
            "References",
            ("MOUNT ID", "COUNT", "DEAD"),
            [
                (mount_id, str(shown.references.get(mount_id, 0)), str(dead))
                for mount_id in {**shown.references, **shown.dead_references}
                for dead in [shown.dead_references.get(mount_id, 0)]
            ],
        ),
        Table(
            "Users",
            ("PID", "COMMAND", "CONTAINER", "MOUNT POINT"),
            [(str(each.pid), each.command, each.container, each.target) for each in shown.users],
        ),
        Pairs("Options in force", [(name, str(value)) for name, value in options.items()]),
        Table(
            "Features of FUSE",
            ("FEATURE", "STATE", "REASON"),
            [(each["name"], each["state"], each["reason"]) for each in shown.features],
        ),
        Table("Last lines of its log", (), [(line,) for line in shown.log]),
    ]
    return [block for block in blocks if block.rows]


def plugin_view(reply: HealthReply, process: Process) -> PluginView:
    """Return the plugin of *reply*, which runs as *process*."""
    return PluginView(
        program=reply.program,
        volumes=reply.volumes,
        mounted=reply.mounted,
        lost=reply.lost,
        process=process,
    )


def plugin_document(shown: PluginView) -> list[Block]:
    """Return the document of `passfs status` without a volume."""
    return [
        Pairs(
            "",
            [
                ("program", shown.program),
                ("volumes", str(shown.volumes)),
                ("mounted", str(shown.mounted)),
                ("lost", str(shown.lost)),
            ],
        ),
        Table("Processes", _PROCESS_COLUMNS, [_process(shown.process)]),
    ]


_PROCESS_COLUMNS: Final = (
    *("PROCESS", "PID", "PID IN PLUGIN", "UPTIME", "MEMORY", "DESCRIPTORS", "THREADS"),
)


def removal_document(removed: Removal) -> list[Block]:
    """Return the document of `passfs rm`."""
    dropped = str(removed.references) if removed.references else "none"
    return [Pairs("", [("removed", removed.name), ("references dropped", dropped)])]


def finding_document(found: Sequence[Mapping[str, str]]) -> list[Block]:
    """Return the document of `passfs check`."""
    return [
        Pairs(
            each["volume"] or "all volumes",
            [(name, text) for name, text in each.items() if name != "volume"],
        )
        for each in found
    ] or [Pairs("", [("check", "registry, disk and mounts agree")])]


def duration(seconds: float) -> str:
    """Return *seconds* in the two largest units, such as "3 h 5 min"."""
    parts, left = [], int(seconds)
    for name, size in _UNITS:
        if left >= size:
            parts.append(f"{left // size} {name}")
            left %= size
    return " ".join(parts[:2]) or "0 s"


def status_of(volume: VolumeInfo) -> dict[str, Any]:
    """Return the Status of *volume*."""
    return msgspec.json.decode(volume.status, type=dict[str, Any])


def _row(volume: VolumeInfo) -> Row:
    status = status_of(volume)
    word, reason = health(status)
    options = status.get("options", {})
    # "4: the worker of their mount has ended; ..."
    dead = str(status.get("dead_references", "")).partition(":")[0]
    return Row(
        name=volume.name,
        source=str(status.get("source", status.get("data", options.get("source", "")))),
        own="data" in status,
        cache=str(options.get("cache", "")),
        session=str(status.get("session", "")).partition(":")[0],
        users=int(status.get("references", 0)),
        dead_users=int(dead or 0),
        health=word,
        reason=reason,
    )


def _feature(feature: Feature) -> dict[str, Any]:
    state = "on" if feature.used else "missing" if feature.wanted else "off"
    return {"name": feature.name, "state": state, "reason": feature.reason}


def _process(process: Process) -> tuple[str, ...]:
    known = process.memory_bytes is not None
    return (
        process.role,
        str(process.pid or ""),
        str(process.pid_in_plugin or ""),
        "" if process.uptime_s is None else duration(process.uptime_s),
        f"{process.memory_bytes / _MIB:.1f} MiB" if known and process.memory_bytes else "",
        "" if process.descriptors is None else str(process.descriptors),
        "" if process.threads is None else str(process.threads),
    )

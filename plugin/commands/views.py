"""The plugin's answers as rows and documents, but those about one volume; no I/O."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from plugin.commands.document import Block, Pairs, Table
from plugin.commands.process_view import process_table
from plugin.commands.processes import Process
from plugin.protocol import HealthReply, ReplyPart, VolumeInfo
from plugin.volumes.health import health


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
        process_table([shown.process]),
    ]


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

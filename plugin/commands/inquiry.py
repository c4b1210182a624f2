"""Asks the plugin about volumes, and adds the facts about processes that the host's /proc has."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from plugin.commands import directory, processes, views, volume_view
from plugin.commands.asking import CommandError, Plugin, path_of
from plugin.commands.processes import Process, User
from plugin.commands.views import ListedVolumes, PluginView, Removal, Row
from plugin.commands.volume_view import View
from plugin.protocol import CheckReply, DetailsReply, HealthReply, MountDetails, Reply

CHECK_S: Final = 40.0
"""If sources and data directory hang, the plugin gives up after 26 s, check.py."""
REMOVE_S: Final = 30.0
"""The deadline of Remove in volume_locks.py is shorter."""


def rows(plugin: Plugin) -> list[Row]:
    """Return all volumes, by name."""
    return views.rows(plugin.ask("/volumes", ListedVolumes))


def names(plugin: Plugin, limit_s: float) -> list[str]:
    """Return the names of all volumes; the plugin has *limit_s* for the answer."""
    reply = plugin.ask("/volumes", ListedVolumes, limit_s=limit_s)
    return sorted(volume.name for volume in reply.volumes)


def view(
    plugin: Plugin,
    volume: str,
    interval_s: float = 0,
    pause: Callable[[float], object] = time.sleep,
) -> View:
    """Return *volume* with its processes and its users.

    Measure the rates of its requests during a *pause* of *interval_s*; 0: do not.
    """
    before, reply = None, plugin.ask(path_of(volume), DetailsReply)
    if interval_s and reply.counters is not None:
        pause(interval_s)
        before, reply = reply, plugin.ask(path_of(volume), DetailsReply)
    status = views.status_of(reply.volume)
    whose = directory.look_at(str(status.get("source", status.get("data", ""))))
    if reply.mount is None:
        return volume_view.view(before, reply, [], [], whose)
    users = processes.users(plugin.pid, reply.mount.device)
    return volume_view.view(before, reply, _serving(plugin, reply.mount), users, whose)


def findings(plugin: Plugin, volume: str | None) -> list[Mapping[str, str]]:
    """Return what is wrong with *volume*, or with anything of the plugin."""
    path = "/check" if volume is None else path_of(volume, "check")
    reply = plugin.ask(path, CheckReply, limit_s=CHECK_S)
    return [msgspec.structs.asdict(each) for each in reply.findings]


def remove(plugin: Plugin, volume: str, *, force: bool) -> Removal:
    """Remove *volume*, which no container may use, from the registry.

    Raises:
        CommandError: nothing is removed.
    """
    if not force:
        raise CommandError(
            "`docker volume rm` removes a volume. --force is for one that the engine has forgotten,"
            " and does not ask the engine."
        )
    found = view(plugin, volume)
    if found.users:
        raise CommandError(
            f"volume {volume!r} is in use: {_shown(found.users)}. Stop these containers or programs"
            " first."
        )
    if (found.references or found.dead_references) and (left := _left(plugin, found)):
        raise CommandError(
            f"volume {volume!r} may be in use: {_shown(left)}. An earlier plugin has left a dead"
            " mount there, perhaps of this volume. Stop these containers or programs first."
        )
    plugin.ask(path_of(volume), Reply, method="DELETE", limit_s=REMOVE_S)
    return Removal(name=volume, references=sum(found.references.values()))


def plugin_view(plugin: Plugin) -> PluginView:
    """Return the plugin as a whole."""
    reply = plugin.ask("/health", HealthReply)
    return views.plugin_view(reply, processes.described("plugin", plugin.pid, reply.pid))


def _left(plugin: Plugin, found: View) -> Sequence[User]:
    """Return the processes with dead mounts that may be of the volume *found*."""
    fsname = str(found.status.get("options", {}).get("fsname", ""))
    return processes.left(plugin.pid, fsname)


def _shown(users: Sequence[User]) -> str:
    return ", ".join(f"{each.command} {each.pid}" for each in users)


def _serving(plugin: Plugin, mount: MountDetails) -> Sequence[Process]:
    """Return the processes that serve *mount*."""
    roles = dict.fromkeys(mount.guards, "guard") | {mount.worker: "worker"}
    roles.pop(0, None)
    found = processes.on_host(plugin.pid, roles)
    return [
        processes.described(role, found.get(pid, 0), pid)
        for pid, role in sorted(roles.items(), key=lambda each: (each[1] != "worker", each[0]))
    ]

"""Asks the plugin about volumes, and adds the facts about processes that the host's /proc has."""

from collections.abc import Sequence

from plugin.commands import processes, views
from plugin.commands.asking import Plugin, path_of
from plugin.commands.processes import Process
from plugin.commands.views import ListedVolumes, PluginView, Row, View
from plugin.protocol import DetailsReply, HealthReply, MountDetails


def rows(plugin: Plugin) -> list[Row]:
    """Return all volumes, by name."""
    return views.rows(plugin.ask("/volumes", ListedVolumes))


def view(plugin: Plugin, volume: str) -> View:
    """Return *volume* with its processes and its users."""
    reply = plugin.ask(path_of(volume), DetailsReply)
    if reply.mount is None:
        return views.view(reply, [], [])
    users = processes.users(plugin.pid, reply.mount.device)
    return views.view(reply, _serving(plugin, reply.mount), users)


def plugin_view(plugin: Plugin) -> PluginView:
    """Return the plugin as a whole."""
    reply = plugin.ask("/health", HealthReply)
    return views.plugin_view(reply, processes.described("plugin", plugin.pid, reply.pid))


def _serving(plugin: Plugin, mount: MountDetails) -> Sequence[Process]:
    """Return the processes that serve *mount*."""
    roles = dict.fromkeys(mount.guards, "guard") | {mount.worker: "worker"}
    roles.pop(0, None)
    found = processes.on_host(plugin.pid, roles)
    return [
        processes.described(role, found.get(pid, 0), pid)
        for pid, role in sorted(roles.items(), key=lambda each: (each[1] != "worker", each[0]))
    ]

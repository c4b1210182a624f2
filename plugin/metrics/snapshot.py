"""The facts about all volumes at one moment, as the metrics show them.

No I/O but reads of control pages and of /proc, so no sick mount delays a scrape.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import trio

from passthrough.worker.counters import Counters
from plugin import process_stat
from plugin.mounting.keeper import Keeper
from plugin.mounting.mount import Mount
from plugin.process_stat import ProcessStat
from plugin.volume import State, Volume, VolumeName
from plugin.volumes.driver import Driver
from plugin.volumes.health import Word, health


class Served(NamedTuple):
    """The mount of a volume, with the processes that serve it."""

    guards: int | None
    """The number of those that live; None without a standby."""
    deaths: int | None
    """Of workers; None without a standby."""
    takeover_s: float
    """From the last death of a worker to the service of the next one; 0 if there was none yet."""
    usage: ProcessStat | None
    """Of the worker that serves; None if it is not known."""
    counters: Counters | None
    """None if an older program has made the mount."""


class VolumeFacts(NamedTuple):
    """One volume."""

    name: VolumeName
    health: Word
    references: int
    dead_references: int
    served: Served | None
    """None if the volume is not mounted, or its mount is lost."""


class Snapshot(NamedTuple):
    """The plugin with its volumes."""

    version: str
    program: str
    """The identity of the plugin's program."""
    states: Mapping[State, int]
    """The number of volumes in each state."""
    volumes: Sequence[VolumeFacts]


async def take(driver: Driver, keeper: Keeper, version: str) -> Snapshot:
    """Return the facts; the plugin answers requests between two volumes."""
    states: dict[State, int] = {state: 0 for state in State if state is not State.REMOVED}
    found = []
    for volume in [*driver.volumes.values()]:
        if volume.state is not State.REMOVED:  # since this snapshot began
            states[volume.state] += 1
            found.append(_facts(driver, keeper, volume))
        await trio.lowlevel.checkpoint()
    return Snapshot(version, keeper.program, states, found)


def _facts(driver: Driver, keeper: Keeper, volume: Volume) -> VolumeFacts:
    mount = keeper.mounted(volume.name) if keeper.is_served(volume.name) else None
    status = msgspec.json.decode(driver.describe(volume).status, type=dict[str, Any])
    return VolumeFacts(
        name=volume.name,
        health=health(status).word,
        references=volume.reference_count,
        dead_references=volume.dead.total(),
        served=None if mount is None else _served(mount),
    )


def _served(mount: Mount) -> Served:
    standby = mount.worker.standby
    deaths, state = standby.deaths(), standby.state
    worker, guards = standby.members()
    return Served(
        guards=None if deaths is None else len(guards),
        deaths=None if deaths is None else deaths.number,
        takeover_s=0.0 if state is None else state.last_takeover_us / 1e6,
        usage=process_stat.read(worker) if worker else None,
        counters=standby.counters(),
    )

"""The details of a volume for `passfs status`: all of Get, and what no engine asks for.

No I/O but reads of control pages and of /proc for a few processes, so no sick mount delays the
answer.
"""

import os
import time

import msgspec
import trio

from passthrough.options.effective import resolve
from passthrough.options.sessions import Release
from passthrough.options.table import OptionError
from passthrough.session import negotiation
from passthrough.worker.handover import Report
from plugin.counted import Counters, Operation
from plugin.mounting.keeper import Keeper
from plugin.mounting.mount import Mount
from plugin.protocol import (
    CountersReply,
    DetailsReply,
    Feature,
    HealthReply,
    MountDetails,
    Reply,
    VolumeCounters,
    VolumeRequest,
)
from plugin.volume import State
from plugin.volumes.driver import Driver


class Details:
    """The answers about one volume, and about all together."""

    def __init__(self, driver: Driver, keeper: Keeper, release: Release) -> None:
        self._driver = driver
        self._keeper = keeper
        self._release = release

    async def health(self) -> HealthReply:
        """Report that the plugin answers, and count its volumes by state."""
        states = [volume.state for volume in self._driver.volumes.values()]
        return HealthReply(
            program=self._keeper.program,
            pid=os.getpid(),
            volumes=len(states),
            mounted=states.count(State.MOUNTED),
            lost=states.count(State.LOST) + states.count(State.LEFT),
        )

    async def get(self, request: VolumeRequest) -> Reply:
        """Describe a volume and its mount, in any state.

        Raises:
            NoSuchVolume: there is no such volume.
        """
        volume = self._driver.volume(request.name)
        mount = self._keeper.mounted(volume.name)
        return DetailsReply(
            volume=self._driver.describe(volume),
            state=volume.state,
            users=volume.references,
            dead=volume.dead,
            mount=None if mount is None else _described(mount),
            at_ns=time.monotonic_ns(),
            counters=None if mount is None else _counters(mount),
            features=[] if mount is None else self._features(mount.worker.report),
        )

    async def counters(self) -> Reply:
        """Return the counters of all mounts; the plugin answers requests between two of them."""
        at_ns = time.monotonic_ns()
        found = []
        for name in [*self._driver.volumes]:
            mount = self._keeper.mounted(name)
            if mount is not None:
                found.append(msgspec.Raw(_counted(name, mount).encode()))
                await trio.lowlevel.checkpoint()
        return CountersReply(at_ns=at_ns, volumes=found)

    def _features(self, report: Report) -> list[Feature]:
        """Return the features of INIT, or nothing if they are unknown."""
        if not report.offered or report.config is None:
            return []
        try:
            config = resolve(report.config, self._release, report.without_handles)
        except OptionError:  # of another version; Status has the reason
            return []
        found = negotiation.states(report.offered, report.used, config)
        return [
            Feature(name=name, wanted=wanted, used=used, reason=reason)
            for name, wanted, used, reason in found
        ]


def _described(mount: Mount) -> MountDetails:
    worker, guards = mount.worker.standby.members()
    return MountDetails(
        device=f"{os.major(mount.device)}:{os.minor(mount.device)}",
        number=mount.number,
        loss=mount.loss,
        worker=0 if mount.loss else worker,
        guards=() if mount.loss else guards,
        log=mount.worker.last_lines,
    )


def _counted(name: str, mount: Mount) -> VolumeCounters:
    return VolumeCounters(
        name=name,
        mount=mount.number,
        worker=_worker(mount),
        counters=_counters(mount),
    )


def _worker(mount: Mount) -> int:
    """Return the process id of the worker, in the plugin's pid namespace; 0 if it is not known."""
    return 0 if mount.loss else mount.worker.standby.members()[0]


def _counters(mount: Mount) -> Counters | None:
    found = mount.worker.standby.counters()
    if found is None:
        return None
    operations = {
        name: Operation(ns=each.ns, buckets=each.buckets) for name, each in found.operations.items()
    }
    return Counters(**{**found._asdict(), "operations": operations})

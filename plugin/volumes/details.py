"""The details of a volume for `passfs status`: all of Get, and what no engine asks for.

No I/O but reads of control pages and of /proc for a few processes, so no sick mount delays the
answer.
"""

import os

from passthrough.options.effective import resolve
from passthrough.options.sessions import Release
from passthrough.options.table import OptionError
from passthrough.session import negotiation
from passthrough.worker.handover import Report
from plugin.mounting.keeper import Keeper
from plugin.mounting.mount import Mount
from plugin.protocol import DetailsReply, Feature, HealthReply, MountDetails, Reply, VolumeRequest
from plugin.volume import State
from plugin.volumes.driver import Driver


class Details:
    """The answers about one volume, and about all together."""

    def __init__(self, driver: Driver, keeper: Keeper, release: Release) -> None:
        self._driver = driver
        self._keeper = keeper
        self._release = release

    async def health(self) -> Reply:
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
            features=[] if mount is None else self._features(mount.worker.report),
        )

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
        loss=mount.loss,
        worker=0 if mount.loss else worker,
        guards=() if mount.loss else guards,
        log=mount.worker.last_lines,
    )

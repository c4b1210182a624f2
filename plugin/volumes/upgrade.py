"""The upgrade of mounted volumes to the plugin's own program, one after the other."""

import logging

from plugin.mounting.keeper import Keeper
from plugin.protocol import EmptyRequest, ProgramsReply, Reply, VolumeProgram
from plugin.volumes.volume_locks import VolumeLocks

log = logging.getLogger(__name__)


class Upgrade:
    """The upgrade after the start of the plugin, plugin/mounting/succession.py."""

    def __init__(self, keeper: Keeper, locks: VolumeLocks) -> None:
        self._keeper = keeper
        self._locks = locks
        self._done = False

    async def run(self) -> None:
        """Let the plugin's program take over each volume that an older program serves."""
        older = [each.name for each in self._keeper.programs() if each.note and not each.detached]
        for name in older:
            try:
                async with self._locks.hold(name, "Upgrade"):
                    await self._keeper.replace(name)
            except Exception as error:  # a boundary: it costs one volume its upgrade
                log.exception("volume %s: an older program serves on", name)
                self._keeper.note_failure(name, str(error))
        self._done = True

    async def programs(self, _: EmptyRequest) -> Reply:
        """Report the programs that serve the mounts, for `passfs upgrade`."""
        volumes = [
            VolumeProgram(
                name=each.name,
                older=each.note,
                lost=each.loss,
                milliseconds=1000 * each.replaced_s,
            )
            for each in self._keeper.programs()
        ]
        return ProgramsReply(program=self._keeper.program, done=self._done, volumes=volumes)

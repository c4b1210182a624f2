"""What a volume is on disk: its record and, where it has no source, its directory; both or neither.

All of it blocks. Callers run it in a thread and to its end, whoever goes away meanwhile: a record
without its directory could not be mounted, a directory without its record would be in the way of a
new volume.
"""

import logging
from contextlib import suppress
from typing import NamedTuple

from passthrough.identity.idmap import ContainerId, ContainerIds, IdMaps, UnmappedError
from passthrough.options.effective import Effective
from plugin.errors import PluginError, StorageFailed
from plugin.options import has_source
from plugin.volume import FileName, Record, VolumeName
from plugin.volumes.registry import Registry
from plugin.volumes.storage import Storage

log = logging.getLogger(__name__)


class Inventory(NamedTuple):
    """The volumes on disk."""

    registry: Registry
    storage: Storage

    def settle(self) -> None:
        """Finish what a plugin that was killed has left half removed; before any other call.

        Raises:
            OSError: the data directory cannot be read.
        """
        records = self.registry.records
        self.storage.settle(record for record in records if not has_source(record.options))

    def used(self) -> dict[VolumeName, FileName]:
        """Return, for each volume that has users, the name of its mount point."""
        records = self.registry.records
        return {
            record.name: record.directory
            for record in records
            if record.name in self.registry.references
        }

    def add(self, record: Record, options: Effective) -> None:
        """Make a volume; on return it survives a power cut.

        Raises:
            PluginError: nothing has been made.
        """
        if has_source(record.options):
            self.registry.add(record)
            return
        self.storage.create(record, options.mode, *self._owner(options))
        try:
            self.registry.add(record)
        except PluginError:
            self.storage.withdraw(record)
            raise

    def _owner(self, options: Effective) -> tuple[int, int]:
        """Return the user and the group of the host that a volume's own directory is made for.

        If the options give none, the root of containers owns it, as map and squash have it act.
        """
        uid, gid = self.storage.owner
        with suppress(UnmappedError):
            uid, gid = IdMaps(options).to_host(ContainerIds(ContainerId(uid), ContainerId(gid)))
        return (
            uid if options.uid is None else options.uid,
            gid if options.gid is None else options.gid,
        )

    def remove(self, record: Record) -> None:
        """Forget a volume; its files, if it had no source, are in the trash afterwards.

        Raises:
            PluginError: it is still there.
        """
        if has_source(record.options):
            self.registry.remove(record.name)
            return
        # Between these the plugin may be killed; the next one finds them aside and gives them back.
        self.storage.set_aside(record)
        try:
            self.registry.remove(record.name)
        except PluginError:
            self.storage.restore(record)
            raise
        try:
            self.storage.discard(record)
        except StorageFailed as error:  # removed it is; the next start tries once more
            log.warning("volume %s: %s", record.name, error)

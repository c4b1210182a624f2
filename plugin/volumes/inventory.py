"""The volumes on disk: the record of each, and the directory of each that has no source.

A volume without a source has a record and a directory, or neither. A record without its directory
could not be mounted; a directory without its record would block a new volume of the same name.

All functions block. Callers run them in a thread, to the end, even if the client hangs up.
"""

import logging
from contextlib import suppress
from typing import NamedTuple

from passthrough.identity.idmap import ContainerId, ContainerIds, IdMaps, UnmappedError
from passthrough.options.effective import Effective
from plugin.errors import PluginError, StorageFailed
from plugin.volume import FileName, Record, VolumeName
from plugin.volume_options import has_source
from plugin.volumes.registry import Registry
from plugin.volumes.storage import Storage

log = logging.getLogger(__name__)


class Inventory(NamedTuple):
    """The volumes on disk."""

    registry: Registry
    storage: Storage

    def settle(self) -> None:
        """Finish or undo the removals that a killed plugin left half done; before any other call.

        Raises:
            OSError: the data directory cannot be read.
        """
        records = self.registry.records
        self.storage.settle(record for record in records if not has_source(record.options))

    def mount_points_in_use(self) -> dict[VolumeName, FileName]:
        """Return the name of the mount point of each volume that has references."""
        records = self.registry.records
        return {
            record.name: record.directory
            for record in records
            if record.name in self.registry.references
        }

    def add(self, record: Record, options: Effective) -> None:
        """Create a volume; on return it survives a power cut.

        Raises:
            PluginError: no volume has been created.
        """
        if has_source(record.options):
            self.registry.add(record)
            return
        self.storage.create(record, options.mode, *self.owner(options))
        try:
            self.registry.add(record)
        except PluginError:
            self.storage.withdraw(record)
            raise

    def owner(self, options: Effective) -> tuple[int, int]:
        """Return the host's user and group for a new directory of a volume.

        If the options give no owner, the containers' root owns the directory, as the options map or
        squash that root.
        """
        uid, gid = self.storage.owner
        with suppress(UnmappedError):
            uid, gid = IdMaps(options).to_host(ContainerIds(ContainerId(uid), ContainerId(gid)))
        return (
            uid if options.uid is None else options.uid,
            gid if options.gid is None else options.gid,
        )

    def remove(self, record: Record) -> None:
        """Forget a volume, and move its files, if it has no source, into the trash.

        Raises:
            PluginError: the volume still exists.
        """
        if has_source(record.options):
            self.registry.remove(record.name)
            return
        # If the plugin is killed before the record is removed, the next one moves the files back.
        self.storage.set_aside(record)
        try:
            self.registry.remove(record.name)
        except PluginError:
            self.storage.restore(record)
            raise
        try:
            self.storage.discard(record)
        except StorageFailed as error:  # the volume is removed; the next start tries again
            log.warning("volume %s: %s", record.name, error)

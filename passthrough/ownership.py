"""Who owns what: creating as the caller, showing owners, giving files away; through the maps."""

import logging
import os
from contextlib import AbstractContextManager
from typing import Final

from passthrough import credentials
from passthrough.config import Config
from passthrough.idmap import (
    Caller,
    ContainerId,
    ContainerIds,
    HostId,
    HostIds,
    UnmappedError,
    maps,
)

log = logging.getLogger(__name__)

_SAME: Final = -1  # an id that chown(2) leaves as it is


class Ownership:
    """The owners of one volume's files, between its users and the host."""

    __slots__ = ("_maps", "_reported")

    def __init__(self, config: Config) -> None:
        self._maps = maps(config)
        self._reported: set[str] = set()

    def acting_as(self, caller: Caller) -> AbstractContextManager[None]:
        """A guard: inside it, what this thread creates belongs to *caller* on the host.

        Raises:
            OSError: EPERM, *caller* is nobody there.
        """
        if self._maps is None:
            return credentials.acting_as(HostIds(HostId(caller.uid), HostId(caller.gid)))
        try:
            return credentials.acting_as(self._maps.to_host(caller))
        except UnmappedError as error:
            self._report(error)
            raise

    def shown(self, attributes: os.stat_result) -> ContainerIds | None:
        """Whom a file is shown to belong to, if that is not whom it belongs to on the host."""
        if self._maps is None:
            return None
        host = HostIds(HostId(attributes.st_uid), HostId(attributes.st_gid))
        return self._maps.to_container(host)

    def give(self, path: bytes, uid: ContainerId | None, gid: ContainerId | None) -> None:
        """Change the owner of *path*, following symlinks, chown(2); None leaves an id as it is.

        Raises:
            OSError: EPERM, an id is nobody's on the host; as chown(2) reports it.
        """
        if self._maps is None:
            os.chown(path, _SAME if uid is None else uid, _SAME if gid is None else gid)
            return
        try:
            host_uid, host_gid = self._maps.new_owner(uid, gid)
        except UnmappedError as error:
            self._report(error)
            raise
        os.chown(
            path, _SAME if host_uid is None else host_uid, _SAME if host_gid is None else host_gid
        )

    def _report(self, error: UnmappedError) -> None:
        """Say once for each map that it lacks somebody: who tries again says nothing new."""
        if error.option not in self._reported:
            self._reported.add(error.option)
            log.warning("%s, so nothing is created for it; this is said once", error.strerror)

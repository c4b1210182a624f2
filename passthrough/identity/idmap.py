"""Maps ids of users of a volume (containers) to ids of the host.

A map has ranges, container:host:count. An id in no range has no counterpart: no file is created for
it. Squashing comes before the ranges, as in exports(5): the squashed ids act as one id of the host.

The core maps the ids of requests and owners, by the same rules. The plugin and the start of a
worker use this module. The ids of containers and of the host are different types, so that mypy
finds a mix-up.
"""

import errno
from typing import Final, NamedTuple, NewType

from passthrough.options.choices import Squash
from passthrough.options.effective import Effective
from passthrough.options.owner import ANONYMOUS
from passthrough.options.values import Range

ContainerId = NewType("ContainerId", int)
HostId = NewType("HostId", int)

_ROOT: Final = 0


class ContainerIds(NamedTuple):
    """A user and a group of containers."""

    uid: ContainerId
    gid: ContainerId


class HostIds(NamedTuple):
    """A user and a group of the host."""

    uid: HostId
    gid: HostId


class UnmappedError(PermissionError):
    """An id without a counterpart on the host; EPERM, with the option of the map."""

    def __init__(self, option: str, number: int) -> None:
        self.option = option
        self.number = number
        super().__init__(errno.EPERM, f"id {number} is in no range of {option}")


class IdMap:
    """The map of a volume for users or for groups."""

    __slots__ = ("_anonymous", "_option", "_ranges", "_squash")

    def __init__(
        self, option: str, ranges: tuple[Range, ...], squash: Squash, anonymous: int | None
    ) -> None:
        self._option = option
        self._ranges = ranges
        self._squash = squash
        self._anonymous = HostId(ANONYMOUS if anonymous is None else anonymous)

    def to_host(self, number: ContainerId) -> HostId:
        """Return the id of the host that *number* acts as.

        Raises:
            UnmappedError: *number* has no counterpart; errno is EPERM.
        """
        if self._squash is Squash.ALL or (self._squash is Squash.ROOT and number == _ROOT):
            return self._anonymous
        if not self._ranges:
            return HostId(number)
        for container, host, count in self._ranges:
            if 0 <= number - container < count:
                return HostId(host + number - container)
        raise UnmappedError(self._option, number)

    def reaches(self, number: HostId) -> bool:
        """Return whether a caller acts as *number*.

        Squashed callers act as the anonymous id, which may be in no range.
        """
        if not self._ranges:
            return True
        if any(0 <= number - host < count for _, host, count in self._ranges):
            return True
        return self._squash is not Squash.NONE and number == self._anonymous


class IdMaps:
    """The maps of one volume, for users and for groups."""

    __slots__ = ("_gid", "_uid")

    def __init__(self, config: Effective) -> None:
        self._uid = IdMap("map_uid", config.map_uid, config.squash, config.anon_uid)
        self._gid = IdMap("map_gid", config.map_gid, config.squash, config.anon_gid)

    def to_host(self, ids: ContainerIds) -> HostIds:
        """Return the ids of the host that *ids* act as.

        Raises:
            UnmappedError: an id has no counterpart.
        """
        return HostIds(self._uid.to_host(ids.uid), self._gid.to_host(ids.gid))

    def reaches_user(self, number: HostId) -> bool:
        """Return whether a caller acts as the user *number*."""
        return self._uid.reaches(number)


def why_no_change_allowed(config: Effective, owner: HostId) -> str:
    """Return why no caller may change a top directory of *owner*; empty if its owner may."""
    if IdMaps(config).reaches_user(owner):
        return ""
    return (
        f"the top directory belongs to the host's user {owner}, which is in no range of map_uid: no"
        " caller can create or remove anything in it; chown it on the host"
    )

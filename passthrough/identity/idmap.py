"""Maps ids between the users of a volume (containers) and the files of the host.

A map has ranges, container:host:count. A caller's ids are mapped to the host, a file's owner is
mapped to the container. An id in no range has no counterpart: no file is created for it, and for an
owner in no range the kernel gets UNMAPPED, as on an idmapped mount. Squashing comes before the
ranges, as in exports(5): the squashed ids act as one id of the host.

The ids of containers and of the host are different types, so that mypy finds a mix-up.
"""

import errno
from typing import Final, NamedTuple, NewType

from passthrough.options.choices import Squash
from passthrough.options.effective import Effective
from passthrough.options.values import Range

ContainerId = NewType("ContainerId", int)
HostId = NewType("HostId", int)

# INVALID_UID of the kernel, include/linux/uidgid.h: no user or group. With it, setfsuid(2) and
# setfsgid(2) change nothing and return the present id.
NO_ID: Final[int] = 0xFFFF_FFFF
# If an owner is UNMAPPED, stat(2) shows the overflow id, 65534. In permission checks the owner
# equals no caller, and no caller's capabilities reach the file.
UNMAPPED: Final[int] = NO_ID
# A group that is valid to the kernel. With an invalid group the kernel would refuse the owner, too.
UNMAPPED_GROUP: Final[int] = 0xFFFF_FFFE
# The user or group of a thread that creates nothing: no file of the host is likely to have this id.
NO_FILES_ID: Final = 0xFFFF_FFF0
_ROOT: Final = 0


class ContainerIds(NamedTuple):
    """A user and a group of containers."""

    uid: ContainerId
    gid: ContainerId


class HostIds(NamedTuple):
    """A user and a group of the host."""

    uid: HostId
    gid: HostId


Caller = ContainerIds
"""The user and the group that sent a request."""


class UnmappedError(PermissionError):
    """An id without a counterpart on the host; EPERM, with the option of the map."""

    def __init__(self, option: str, number: int) -> None:
        self.option = option
        self.number = number
        super().__init__(errno.EPERM, f"id {number} is in no range of {option}")


class IdMap:
    """The map of a volume for users or for groups, in both directions."""

    __slots__ = ("_anonymous", "_option", "_ranges", "_squash")

    def __init__(
        self, option: str, ranges: tuple[Range, ...], squash: Squash, anonymous: int
    ) -> None:
        self._option = option
        self._ranges = ranges
        self._squash = squash
        self._anonymous = HostId(anonymous)

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

    def to_host_or_placeholder(self, number: ContainerId) -> HostId:
        """Return the id that *number* acts as; without a counterpart, NO_FILES_ID."""
        try:
            return self.to_host(number)
        except UnmappedError:
            return HostId(NO_FILES_ID)

    def to_container(self, number: HostId) -> ContainerId:
        """Return the id that the kernel gets for *number*; UNMAPPED if no caller acts as it."""
        if not self._ranges:
            return ContainerId(number)
        for container, host, count in self._ranges:
            if 0 <= number - host < count:
                return ContainerId(container + number - host)
        return self._squashed(number)

    def _squashed(self, number: HostId) -> ContainerId:
        """Return the id that the kernel gets for *number*, which is in no range.

        If *number* is the anonymous id, squashed callers act as it. With squash=root this is only
        container root, which becomes the owner. With squash=all it is every caller, so that the
        host's number does no harm.
        """
        if self._squash is Squash.NONE or number != self._anonymous:
            return ContainerId(UNMAPPED)
        return ContainerId(_ROOT if self._squash is Squash.ROOT else number)


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

    def to_host_or_placeholder(self, ids: ContainerIds) -> HostIds:
        """Return the ids that *ids* act as if they create nothing: NO_FILES_ID if unmapped."""
        return HostIds(
            self._uid.to_host_or_placeholder(ids.uid), self._gid.to_host_or_placeholder(ids.gid)
        )

    def to_container(self, ids: HostIds) -> ContainerIds:
        """Return the owner that the kernel gets for *ids*.

        An unmapped group is UNMAPPED beside an unmapped user, and UNMAPPED_GROUP beside a mapped
        user.
        """
        uid = self._uid.to_container(ids.uid)
        if uid == UNMAPPED:
            return ContainerIds(uid, uid)
        gid = self._gid.to_container(ids.gid)
        return ContainerIds(uid, ContainerId(UNMAPPED_GROUP) if gid == UNMAPPED else gid)

    def lacks_user(self, number: HostId) -> bool:
        """Return whether no caller acts as the user *number*."""
        return self._uid.to_container(number) == UNMAPPED

    def lacks_group(self, number: HostId) -> bool:
        """Return whether no caller acts with the group *number*."""
        return self._gid.to_container(number) == UNMAPPED

    def may_have_group(self, number: HostId) -> bool:
        """Return whether an unsquashed caller may have the supplementary group *number*.

        With squash=root it cannot have root's group, and never an unmapped group.
        """
        return self._gid.to_container(number) not in {_ROOT, UNMAPPED}

    def new_owner(
        self, uid: ContainerId | None, gid: ContainerId | None
    ) -> tuple[HostId | None, HostId | None]:
        """Return the ids of the host for chown(2); None leaves an id as it is.

        Raises:
            UnmappedError: an id has no counterpart.
        """
        return (
            None if uid is None else self._uid.to_host(uid),
            None if gid is None else self._gid.to_host(gid),
        )


def maps(config: Effective) -> IdMaps | None:
    """Return the maps of *config*; None if the ids of both sides are the same."""
    used = config.map_uid or config.map_gid or config.squash is not Squash.NONE
    return IdMaps(config) if used else None

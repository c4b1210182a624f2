"""Whose ids are whose: those of the volume's users, and those that files have on the host.

A map has ranges, container:host:count. What its users do is mapped in, whose a file is is mapped
out; an id in no range has no counterpart: nothing is created for it. The kernel is told UNMAPPED
for an owner in no range, as for one that an idmapped mount lacks. Squashing comes before the
ranges, as exports(5) has it: the ids that it takes act as one id of the host's.

The two kinds of number are different types, so that one cannot be taken for the other by mistake.
"""

import errno
from typing import Final, NamedTuple, NewType

from passthrough.options.choices import Squash
from passthrough.options.effective import Effective
from passthrough.options.values import Range

ContainerId = NewType("ContainerId", int)
HostId = NewType("HostId", int)

# INVALID_UID of the kernel, include/linux/uidgid.h: no user or group. setfsuid(2) and setfsgid(2)
# change nothing for it, and return the present id.
NO_ID: Final[int] = 0xFFFF_FFFF
# Told for an owner, stat(2) shows it as the overflow id, 65534, and permission checks find no
# caller that it equals, nor one whose capabilities reach its file.
UNMAPPED: Final[int] = NO_ID
# A group that the kernel takes for valid. With an invalid one it would refuse the owner, too.
UNMAPPED_GROUP: Final[int] = 0xFFFF_FFFE
# For a thread that creates nothing meanwhile: no file of the host is likely to have this user or
# group.
NO_FILES_ID: Final = 0xFFFF_FFF0
_ROOT: Final = 0


class ContainerIds(NamedTuple):
    """A user and a group as the volume's users know them."""

    uid: ContainerId
    gid: ContainerId


class HostIds(NamedTuple):
    """A user and a group of the host's files."""

    uid: HostId
    gid: HostId


# Who sent a request.
Caller = ContainerIds


class UnmappedError(PermissionError):
    """An id that has no counterpart on the host, by the map that lacks it."""

    def __init__(self, option: str, number: int) -> None:
        self.option = option
        self.number = number
        super().__init__(errno.EPERM, f"id {number} is in no range of {option}")


class IdMap:
    """One kind of ids, users' or groups', there and back."""

    __slots__ = ("_anonymous", "_option", "_ranges", "_squash")

    def __init__(
        self, option: str, ranges: tuple[Range, ...], squash: Squash, anonymous: int
    ) -> None:
        self._option = option
        self._ranges = ranges
        self._squash = squash
        self._anonymous = HostId(anonymous)

    def to_host(self, number: ContainerId) -> HostId:
        """Whom *number* acts as.

        Raises:
            UnmappedError: nobody; errno is EPERM.
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
        """Return whom *number* acts as; if it lacks a counterpart, an id that has no files."""
        try:
            return self.to_host(number)
        except UnmappedError:
            return HostId(NO_FILES_ID)

    def to_container(self, number: HostId) -> ContainerId:
        """Return what the kernel is told for *number*; UNMAPPED if no caller acts as it."""
        if not self._ranges:
            return ContainerId(number)
        for container, host, count in self._ranges:
            if 0 <= number - host < count:
                return ContainerId(container + number - host)
        return self._squashed(number)

    def _squashed(self, number: HostId) -> ContainerId:
        """Return what is told for *number*, which is in no range: squashed callers may act as it.

        With `root` the only one of them is container root. With `all` every caller is one of them,
        so that the number of the host does no harm.
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
        """Whom *ids* act as.

        Raises:
            UnmappedError: one of them as nobody.
        """
        return HostIds(self._uid.to_host(ids.uid), self._gid.to_host(ids.gid))

    def to_host_or_placeholder(self, ids: ContainerIds) -> HostIds:
        """Return whom *ids* act as where nothing is created: without a counterpart, as others."""
        return HostIds(
            self._uid.to_host_or_placeholder(ids.uid), self._gid.to_host_or_placeholder(ids.gid)
        )

    def to_container(self, ids: HostIds) -> ContainerIds:
        """Return what the kernel is told for the owner *ids*.

        The group of an unmapped user is told as UNMAPPED, that of a mapped one as UNMAPPED_GROUP.
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

    def may_be_in(self, number: HostId) -> bool:
        """Return whether *number* may be a supplementary group of a caller that has its own user.

        Root's group is not one with squash=root, as an unmapped one is not.
        """
        return self._gid.to_container(number) not in {_ROOT, UNMAPPED}

    def new_owner(
        self, uid: ContainerId | None, gid: ContainerId | None
    ) -> tuple[HostId | None, HostId | None]:
        """To whom chown(2) gives a file; None leaves it where it is.

        Raises:
            UnmappedError: to nobody.
        """
        return (
            None if uid is None else self._uid.to_host(uid),
            None if gid is None else self._gid.to_host(gid),
        )


def maps(config: Effective) -> IdMaps | None:
    """The maps that *config* asks for; None where both sides' ids are the same."""
    used = config.map_uid or config.map_gid or config.squash is not Squash.NONE
    return IdMaps(config) if used else None

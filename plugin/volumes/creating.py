"""The steps of a Create beside the record.

Those that look at the host have the deadline of the verb. Each runs in a thread that can be left
behind, because a path may lead to a dead file server.
"""

import logging
from collections.abc import Mapping
from functools import partial

import trio

from plugin import events, threads, volume_options
from plugin.admin import users
from plugin.admin.policy import Policy
from plugin.admin.source import HostView
from plugin.admin.users import HostUsers
from plugin.errors import InvalidOption, VolumeExists
from plugin.volume import Volume, VolumeName
from plugin.volume_options import VolumeOptions
from plugin.volumes.volume_locks import SOURCE_DEADLINE_S, VolumeLock

log = logging.getLogger(__name__)


def refuse_difference(existing: Volume, wanted: VolumeOptions, policy: Policy) -> None:
    """Refuse a Create of a volume that exists with other options than *wanted*.

    Raises:
        VolumeExists: names the options.
    """
    try:
        have = policy.parse(existing.record.options)
    except InvalidOption as error:
        raise VolumeExists(
            f"volume {existing.name!r} exists with options that are not accepted: {error}"
        ) from error
    if difference := volume_options.difference(have, wanted):
        raise VolumeExists(f"volume {existing.name!r} exists with other options: {difference}")


def tell(name: VolumeName, given: Mapping[str, str], created: VolumeOptions) -> None:
    """Log that the volume *name* has been created with the options *given*, and their notes."""
    options = volume_options.without_source(given)
    events.tell(events.CREATED, name, source=created.source or "", options=options)
    for note in created.effective.notes:
        log.warning("volume %s: %s", name, note)


async def numbered(given: Mapping[str, str], host: HostView) -> Mapping[str, str]:
    """Return the options *given* with numbers in place of names of the host's users and groups.

    Raises:
        InvalidOption: the host has no such user or group, or does not answer.
    """
    if not users.has_names(given):
        return given
    look_up = partial(HostUsers(host.root, host.directory).numbered, given)
    try:
        with trio.fail_after(SOURCE_DEADLINE_S):
            return await threads.call(look_up, trio.CapacityLimiter(1), lambda _: None)
    except trio.TooSlowError as error:
        raise InvalidOption(
            f"the host's {users.PASSWD} has not answered within {SOURCE_DEADLINE_S:g} s; give uids"
            " and gids as numbers"
        ) from error


async def check_source(
    wanted: VolumeOptions, host: HostView, lock: VolumeLock, owner: tuple[int, int]
) -> str:
    """Return the note on the source of *wanted*; refuse a source that cannot be mounted.

    If *wanted* asks for that, a missing source is made, with *owner* as its user and group.

    Raises:
        InvalidOption: has the reason.
    """
    if (source := wanted.source) is None:
        return ""
    lock.note_step(f"checking source {source!r}")

    def check() -> str:
        with host.made(source, wanted.effective, owner):
            return host.check(source, wanted.effective)

    try:
        with trio.fail_at(lock.deadline):
            return await threads.call(check, lock.limiter, lambda _: None)
    except trio.TooSlowError as error:
        raise volume_options.refused_source(
            source, f"has not answered within {SOURCE_DEADLINE_S:g} s"
        ) from error

"""The steps of a Create beside the record.

Those that look at the host have the deadline of the verb. Each runs in a thread that can be left
behind, because a path may lead to a dead file server.
"""

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Final, NamedTuple

import trio

from passthrough.linux import filehandles, kernel_features
from passthrough.options.effective import require_file_handles
from passthrough.options.owner import with_source
from passthrough.options.table import OptionError
from plugin import events, threads, volume_options
from plugin.admin import users
from plugin.admin.policy import Policy
from plugin.admin.source import HostView
from plugin.admin.users import HostUsers
from plugin.errors import InvalidOption, VolumeExists
from plugin.volume import Record, Volume, VolumeName
from plugin.volume_options import VolumeOptions
from plugin.volumes.storage import Storage
from plugin.volumes.volume_locks import SOURCE_DEADLINE_S, VolumeLock

log = logging.getLogger(__name__)

# Names that are looked up at once. A lookup takes milliseconds, unless the host's files hang.
LOOKUPS: Final = 4
# The removal of a new source takes milliseconds, unless its file system hangs.
UNDO_S: Final = 2.0


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


class Names:
    """The names of the host's users and groups, as options have them."""

    def __init__(self, policy: Policy, host: HostView) -> None:
        self._policy = policy
        self._users = HostUsers(host.root, host.directory)
        self._limiter = trio.CapacityLimiter(LOOKUPS)

    async def numbered(self, given: Mapping[str, str]) -> Mapping[str, str]:
        """Return the options *given* with numbers in place of names.

        Raises:
            InvalidOption: the administrator forbids such an option; the host has no such user or
                group, or does not answer.
        """
        if not (named := users.named(given)):
            return given
        self._policy.refuse_names(named)
        look_up = partial(self._users.numbered, given)
        try:
            with trio.fail_after(SOURCE_DEADLINE_S):
                return await threads.call(look_up, self._limiter, lambda _: None)
        except trio.TooSlowError as error:
            raise InvalidOption(
                f"the host's {users.PASSWD} has not answered within {SOURCE_DEADLINE_S:g} s; give"
                " uids and gids as numbers"
            ) from error


@asynccontextmanager
async def checked_source(
    wanted: VolumeOptions, host: HostView, lock: VolumeLock, owner: tuple[int, int] | None = None
) -> AsyncIterator[str]:
    """Yield the note on the source of *wanted*; refuse a source that cannot be mounted.

    If *wanted* asks for that, a missing source is made, with *owner* as its user and group. If the
    body fails, it is removed again. Without *owner*, a missing source is refused.

    Raises:
        InvalidOption: has the reason.
    """
    volume_options.require_io_uring(wanted.effective, kernel_features.io_uring_obstacle())
    if (source := wanted.source) is None:
        yield ""
        return
    lock.note_step(f"checking source {source!r}")

    def check() -> _Checked:
        with ExitStack() as stack:
            if owner is not None:
                stack.enter_context(host.made(source, wanted.effective, owner))
            return _Checked(host.check(source, wanted.effective), stack.pop_all())

    try:
        with trio.fail_at(lock.deadline):
            checked = await threads.call(check, lock.limiter, _Checked.undo)
    except trio.TooSlowError as error:
        raise volume_options.refused_source(
            source, f"has not answered within {SOURCE_DEADLINE_S:g} s"
        ) from error
    try:
        yield checked.note
    except BaseException:
        with trio.move_on_after(UNDO_S, shield=True):
            await threads.call(checked.undo, lock.limiter, lambda _: None)
        raise
    checked.keep()


def check_source(record: Record, policy: Policy, storage: Storage, host: HostView) -> str:
    """Refuse the options of a volume that exists, if its directory cannot be mounted with them.

    It may block.

    Returns:
        The note on a source; empty for a directory of the volume's own.

    Raises:
        InvalidOption, StorageFailed: has the reason.
    """
    wanted = policy.parse(record.options)
    volume_options.require_io_uring(wanted.effective, kernel_features.io_uring_obstacle())
    if wanted.source is not None:
        return host.check(wanted.source, wanted.effective)
    fd = storage.open(record)
    try:
        found = os.fstat(fd)
        with_source(wanted.effective.requested, found.st_uid, found.st_gid)
        require_file_handles(wanted.effective, filehandles.obstacle(fd))
    except OptionError as error:
        raise InvalidOption(str(error)) from error
    finally:
        os.close(fd)
    return ""


class _Checked(NamedTuple):
    """A source that a Create has checked, and perhaps made."""

    note: str
    made: ExitStack

    def keep(self) -> None:
        """Keep the source, of which the volume has been created."""
        self.made.close()

    def undo(self) -> None:
        """Remove the source if the Create has made it."""
        with suppress(_FailedError), self.made:
            raise _FailedError


class _FailedError(Exception):
    """The Create has failed."""

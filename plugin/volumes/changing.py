"""Changes the options of a volume, for `passfs set`.

The options that result are checked as those of a Create. The change is on disk before it has any
effect. A mount takes new timeouts at once (passthrough/worker/live.py), and so does the keeper with
another log level (plugin/mounting/worker.py). Everything else waits for the next mount: the kernel
has agreed on it, or open files and the sandbox depend on it.

The registry has the options of the next mount in the table `volumes`, and those in force in the
report of the mount, in the table `served`. One transaction changes both. If the plugin dies before
the mount has its new timeouts, the next plugin takes them from the report.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Final, NamedTuple

import msgspec
import trio

from passthrough.options.effective import Effective, resolve
from passthrough.options.table import OptionError, Requested
from passthrough.options.timeouts import Timeouts
from passthrough.options.vocabulary import option_of
from passthrough.worker.handover import Report
from plugin import events, threads, volume_options
from plugin.admin.policy import Policy
from plugin.admin.source import HostView
from plugin.errors import InvalidOption, MountFailed, StorageFailed
from plugin.mounting.keeper import Keeper
from plugin.mounting.mount import Mount
from plugin.protocol import OptionChange, Reply, SetReply, SetRequest
from plugin.volume import Record, Volume
from plugin.volume_options import SOURCE, VolumeOptions
from plugin.volumes import creating
from plugin.volumes.differences import differences
from plugin.volumes.driver import Driver
from plugin.volumes.registry import Registry
from plugin.volumes.volume_locks import SOURCE_DEADLINE_S, VolumeLock

NOW: Final = "now"
NEXT: Final = "next mount"
LOG_LEVEL: Final = "log_level"

_ANOTHER: Final = "another volume, made by `docker volume create`"
# The options that say which files a volume has, or how its directory is made.
_FIXED: Final[Mapping[str, tuple[str, str]]] = {
    SOURCE: (_ANOTHER, "says which files the volume has"),
    "subpath": (_ANOTHER, "says which files the volume has"),
    "create": ("mkdir(1) on the host", "counts only when the volume is created"),
    "mode": ("chmod(1) on the directory", "counts only when the directory is made"),
    "uid": ("chown(1) on the directory", "counts only when the directory is made"),
    "gid": ("chgrp(1) on the directory", "counts only when the directory is made"),
}
_CACHED: Final = (
    "names and attributes that the kernel has cached already keep the timeouts that they came with"
)
_WAITS: Final = (
    "the mount goes on with the options that it has; the next mount begins when no container uses"
    " the volume any more, and one starts"
)


class Plan(NamedTuple):
    """A change of options, checked as far as that needs no look at the host."""

    record: Record
    """With the options of the next mount."""
    next: VolumeOptions
    old_next: Effective | None
    """None if the options of before are not accepted any more."""
    mount: Mount | None
    """The mount that goes on; None if the volume is not mounted."""
    old: Effective | None
    """The options in force; None if there are none, or they cannot be read."""
    new: Effective | None
    """Those in force from now on."""

    def changes(self) -> list[OptionChange]:
        """Return the differences, the options that change now first."""
        now = [] if self.old is None or self.new is None else differences(self.old, self.new)
        known = {(each.option, each.after) for each in now}
        later = differences(self.old_next, self.next.effective)
        return [
            *(_change(*each, NOW) for each in now),
            *(_change(*each, NEXT) for each in later if (each.option, each.after) not in known),
        ]

    @property
    def report(self) -> Report | None:
        """The report of the mount with the options in force from now on; None without a mount."""
        if self.mount is None or self.new is None:
            return None
        report = self.mount.worker.report
        return msgspec.structs.replace(report, config=self.new.requested)


class Changing:
    """The changes of volumes' options."""

    def __init__(
        self, driver: Driver, keeper: Keeper, registry: Registry, policy: Policy, host: HostView
    ) -> None:
        self._driver = driver
        self._keeper = keeper
        self._registry = registry
        self._policy = policy
        self._host = host
        self._names = creating.Names(policy, host)

    async def set(self, request: SetRequest) -> Reply:
        """Change options of a volume; with `dry_run`, only tell the differences.

        Raises:
            PluginError: nothing has changed.
        """
        _refuse_fixed(request.options)
        given = {name: text for name, text in request.options.items() if text is not None}
        options = {**request.options, **await self._names.numbered(given)}
        async with self._driver.locks.hold(request.name, "Set") as lock:
            volume = self._driver.volume(request.name)
            plan = self._plan(volume, options)
            note = await self._check(plan, lock)
            reply = SetReply(changes=plan.changes(), notes=[*_notes(plan, options)])
            if not request.dry_run:
                await self._apply(volume, plan)
                volume.source_note = note
        return reply

    def _plan(self, volume: Volume, changes: Mapping[str, str | None]) -> Plan:
        options = volume_options.changed(volume.record.options, changes)
        wanted = self._policy.parse(options)
        mount = self._keeper.mounted(volume.name)
        if mount is not None and mount.loss:
            mount = None
        old = None if mount is None else self._in_force(mount.worker.report)
        new = old
        if mount is not None and old is not None:
            named = _at_once(mount) & {option_of(written) for written in changes}
            new = self._with(mount.worker.report, wanted.requested, named)
        return Plan(
            record=msgspec.structs.replace(volume.record, options=options),
            next=wanted,
            old_next=self._next(volume.record),
            mount=mount,
            old=old,
            new=new,
        )

    def _next(self, record: Record) -> Effective | None:
        """Return the options of the next mount of *record*; None if they are not accepted."""
        try:
            return self._policy.parse(record.options).effective
        except InvalidOption:  # of another version of passfs, or under another policy
            return None

    def _in_force(self, report: Report) -> Effective | None:
        """Return the options of a mount; None if this version cannot tell them."""
        if report.config is None:
            return None
        try:
            return resolve(report.config, self._policy.release, report.without_handles)
        except OptionError:
            return None

    def _with(self, report: Report, wanted: Requested, named: Collection[str]) -> Effective | None:
        """Return the options of a mount with those that are *named* as *wanted*."""
        assert report.config is not None  # noqa: S101 - its options are known
        changed = {name: getattr(wanted, name) for name in named}
        config = msgspec.structs.replace(report.config, **changed)
        return self._in_force(msgspec.structs.replace(report, config=config))

    async def _check(self, plan: Plan, lock: VolumeLock) -> str:
        """Return the note on the source; refuse options that do not fit the source."""
        if plan.new is not None and plan.new != plan.old:
            in_force = plan.next._replace(effective=plan.new)
            async with creating.checked_source(in_force, self._host, lock):
                pass
        if plan.next.source is None:
            return await self._check_own(plan.record, lock)
        async with creating.checked_source(plan.next, self._host, lock) as note:
            return note

    async def _check_own(self, record: Record, lock: VolumeLock) -> str:
        """Refuse options that do not fit the volume's own directory."""
        check = partial(self._driver.check_source, record)
        with trio.move_on_at(lock.deadline):
            return await threads.call(check, lock.limiter, lambda _: None)
        raise StorageFailed(
            f"the directory of volume {record.name!r} has not answered within"
            f" {SOURCE_DEADLINE_S:g} s"
        )

    async def _apply(self, volume: Volume, plan: Plan) -> None:
        """Write the change, and then let it be in force."""
        mount, report = plan.mount, plan.report
        records = [
            mount.record(volume.name, report) if mount and record.number == mount.number else record
            for record in self._keeper.mount_records(volume.name)
        ]
        await trio.to_thread.run_sync(self._registry.change, plan.record, records)
        volume.record = plan.record
        if plan.old_next is None:
            volume.source_error = ""  # of the check after the start, which has read those options
        for each in plan.changes():
            events.tell(events.CHANGED, volume.name, **msgspec.structs.asdict(each))
        if mount is None or plan.new is None:
            return
        try:
            mount.let_options(plan.new.requested)
        except OSError as error:
            raise MountFailed(
                f"volume {volume.name!r}: the change is kept, but the mount goes on with earlier"
                f" timeouts: {error.strerror}"
            ) from error


def _at_once(mount: Mount) -> set[str]:
    """Return the options that *mount* takes at once; no timeouts if an older program serves it."""
    takes_timeouts = mount.worker.standby.can_change_timeouts()
    return {LOG_LEVEL, *(Timeouts._fields if takes_timeouts else ())}


def _change(option: str, before: str, after: str, when: str) -> OptionChange:
    return OptionChange(option=option, before=before, after=after, when=when)


def _refuse_fixed(changes: Mapping[str, str | None]) -> None:
    """Refuse a change of an option that a volume has for its life."""
    for written, text in changes.items():
        if (fixed := _FIXED.get(option_of(written))) is not None:
            accepted, reason = fixed
            error = OptionError(written, text or "", accepted, f"cannot change: it {reason}")
            raise InvalidOption(str(error))


def _notes(plan: Plan, changes: Collection[str]) -> Iterator[str]:
    """Yield what the user cannot see in the table."""
    changed = plan.changes()
    if any(each.when == NOW and each.option in Timeouts._fields for each in changed):
        yield _CACHED
    if plan.mount is not None and any(each.when == NEXT for each in changed):
        yield _WAITS
        timeouts = {*Timeouts._fields} & {option_of(written) for written in changes}
        takes = plan.old is not None and plan.mount.worker.standby.can_change_timeouts()
        if timeouts and not takes:
            yield "an older program serves the mount, and takes no other timeouts"
    earlier = () if plan.old_next is None else plan.old_next.notes
    yield from (str(note) for note in plan.next.effective.notes if note not in earlier)

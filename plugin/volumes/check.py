"""The check of the registry against the disk and the mount table, for `passfs check`.

Each finding says what is wrong, what it means, and how to mend it. No step touches a mount: the
check lists directories of the plugin and reads the mount table. It opens the sources of volumes, as
Create does, each in a thread that may hang.

Requests go on meanwhile, so a volume can look wrong for a moment. A finding counts if a second look
has it as well, and if no request has the volume's lock.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import msgspec
import trio

from passthrough.linux.mountinfo import MountEntry
from plugin import threads
from plugin.errors import NoSuchVolume, PluginError, StorageFailed, escaped
from plugin.mounting import mountpoints
from plugin.mounting.keeper import Keeper
from plugin.protocol import CANNOT_BE_MOUNTED, CheckReply, Finding, Reply, VolumeRequest
from plugin.volume import FileName, State, Volume
from plugin.volume_options import has_source
from plugin.volumes.driver import Driver
from plugin.volumes.storage import Entries, Storage

# To list directories and to read the mount table takes milliseconds, unless the data directory
# lies on a dead network file system.
DISK_DEADLINE_S = 3.0
SOURCE_DEADLINE_S = 5.0
# All sources together. The command waits for longer, commands/inquiry.py.
SOURCES_DEADLINE_S = 20.0
SOURCES_AT_ONCE = 8
# Between the two looks.
PAUSE_S = 0.2


class Disk(NamedTuple):
    """The disk and the mount table at one moment."""

    entries: Entries
    mount_points: frozenset[str]
    mounts: Mapping[str, list[MountEntry]]
    """By the name of the mount point in the mount directory."""


Rule: TypeAlias = Callable[[Volume, "Check", Disk], Iterator[Finding]]


class Check:
    """The check of one volume or of all."""

    def __init__(self, driver: Driver, keeper: Keeper, storage: Storage) -> None:
        self._driver = driver
        self.keeper = keeper
        self.storage = storage
        self._threads = trio.CapacityLimiter(1)

    async def one(self, request: VolumeRequest) -> Reply:
        """Check a volume, or what is left of one.

        Raises:
            NoSuchVolume: nothing has that name.
            StorageFailed: the disk cannot be read.
        """
        volumes = self._driver.volumes
        chosen = [volume for volume in [*volumes.values()] if volume.name == request.name]
        findings = [each for each in await self._check(chosen) if each.volume == request.name]
        if not chosen and not findings:
            raise NoSuchVolume(request.name)
        return CheckReply(findings=findings)

    async def all(self) -> Reply:
        """Check all volumes, and what belongs to none.

        Raises:
            StorageFailed: the disk cannot be read.
        """
        return CheckReply(findings=await self._check([*self._driver.volumes.values()]))

    async def _check(self, volumes: Collection[Volume]) -> list[Finding]:
        sources = await self._sources(volumes)
        found = await self._look(volumes)
        if found:
            await trio.sleep(PAUSE_S)
            again = {*await self._look(volumes)}
            found = [finding for finding in found if finding in again]
        return sorted([*found, *sources])

    async def _look(self, volumes: Collection[Volume]) -> list[Finding]:
        """Compare the volumes, and what belongs to none, with the disk as it is now.

        Raises:
            StorageFailed: the disk cannot be read.
        """
        try:
            with trio.fail_after(DISK_DEADLINE_S):
                disk = await threads.call(self._read, self._threads, lambda _: None)
        except (trio.TooSlowError, OSError) as error:
            reason = str(error) or f"it has not answered within {DISK_DEADLINE_S:g} s"
            raise StorageFailed(f"the data directory cannot be read: {reason}") from error
        found = [
            finding
            for volume in volumes
            if volume.state is not State.REMOVED
            for finding in self._of_volume(volume, disk)
        ]
        return [*found, *map(_escaped, self._of_no_volume(disk))]

    def _read(self) -> Disk:
        directory = self.keeper.mount_dir
        mounts = mountpoints.mounts_below(directory)
        return Disk(
            entries=self.storage.entries(),
            mount_points=frozenset(path.name for path in directory.iterdir()),
            mounts={path.name: found for path, found in mounts.items() if path.parent == directory},
        )

    def _of_volume(self, volume: Volume, disk: Disk) -> Iterator[Finding]:
        if waiting := self._driver.locks.in_flight(volume.name):
            yield _busy(volume, waiting.partition(",")[0])
            return
        for rule in RULES:
            yield from rule(volume, self, disk)

    def _of_no_volume(self, disk: Disk) -> Iterator[Finding]:
        known = {str(volume.record.directory) for volume in self._driver.volumes.values()}

        def unknown(names: Iterable[str]) -> list[str]:
            """Return those of *names* that belong to no volume, nor to one that is just made."""
            others = sorted({*names} - known)
            return [name for name in others if not self._driver.locks.in_flight(name)]

        for name in unknown(disk.entries.volumes):
            yield Finding(
                volume=name,
                problem=f"{self.storage.shown(name)} belongs to no volume",
                meaning="it is left from another registry, or another program has made it",
                remedy="look at it, and move it away or delete it; the plugin never does",
            )
        for name in unknown(disk.entries.removed):
            yield Finding(
                volume=name,
                problem="the files of the removed volume are not yet in the trash",
                meaning="its removal was cut off, and is valid",
                remedy="restart the plugin, which deletes them",
            )
        for name in unknown([*disk.mounts, *disk.mount_points]):
            mounts = [mount.fstype for mount in disk.mounts.get(name, [])]
            yield Finding(
                volume=name,
                problem=f"{self.keeper.target(FileName(name))} belongs to no volume"
                f" (mounted: {', '.join(mounts) or 'nothing'})",
                meaning="an unmount has left it, or another program has made it",
                remedy="the next start of the plugin clears away mounts of passfs and empty"
                " directories; unmount others by hand",
            )
        if disk.entries.trash and not self._driver.purging.borrowed_tokens:
            yield Finding(
                volume="",
                problem="files of removed volumes could not be deleted",
                meaning="they take space in `trash` in the data directory; the plugin's log says"
                " why",
                remedy="end the programs that use them; the next removal tries again",
            )

    async def _sources(self, volumes: Collection[Volume]) -> list[Finding]:
        """Open the source of each of *volumes*, or its own directory."""
        found = {volume: _unchecked(volume) for volume in volumes}
        pending = iter(volumes)

        async def run() -> None:
            for volume in pending:
                reason = await self._source(volume)
                settled = volume.state is not State.REMOVED and not self._is_locked(volume)
                if reason and settled:
                    found[volume] = _unusable(volume, reason)
                else:
                    del found[volume]

        with trio.move_on_after(SOURCES_DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for _ in range(SOURCES_AT_ONCE):
                    nursery.start_soon(run)
        return [*found.values()]

    async def _source(self, volume: Volume) -> str:
        """Return why *volume* cannot be mounted; empty if it can."""
        check = self._driver.source_check(volume).check
        with self._driver.locks.source_limiter(volume.name) as limiter:
            try:
                with trio.fail_after(SOURCE_DEADLINE_S):
                    await threads.call(check, limiter, lambda _: None)
            except trio.TooSlowError:
                return f"its source has not answered within {SOURCE_DEADLINE_S:g} s"
            except (PluginError, OSError) as error:
                return str(error)
        return ""

    def _is_locked(self, volume: Volume) -> bool:
        return bool(self._driver.locks.in_flight(volume.name))


def _unchecked(volume: Volume) -> Finding:
    return Finding(
        volume=volume.name,
        problem="its source was not checked",
        meaning="many sources hang, or there are too many volumes for one check",
        remedy="check it by itself: passfs check VOLUME",
    )


def _escaped(finding: Finding) -> Finding:
    """Return a finding about a name on the disk, which need not be UTF-8, for a reply in JSON."""
    shown = {"volume": escaped(finding.volume), "problem": escaped(finding.problem)}
    return msgspec.structs.replace(finding, **shown)


def _busy(volume: Volume, verb: str) -> Finding:
    return Finding(
        volume=volume.name,
        problem=f"a request has its lock ({verb})",
        meaning="it was not checked; `passfs status` has the step that the request waits for",
        remedy="try again when the request is done",
    )


def _unusable(volume: Volume, reason: str) -> Finding:
    kept = ", which deletes no file of its source" if has_source(volume.record.options) else ""
    return Finding(
        volume=volume.name,
        problem=CANNOT_BE_MOUNTED + reason,
        meaning="containers that have the mount already may go on, and no further one starts",
        remedy=f"mend that, such as from a backup, or remove the volume{kept}",
    )


def _is_not_mounted(volume: Volume, check: Check, disk: Disk) -> Iterator[Finding]:
    mount = check.keeper.mounted(volume.name)
    found = [entry.device for entry in disk.mounts.get(volume.record.directory, [])]
    target = check.keeper.target(volume.record.directory)
    if volume.state is State.MOUNTED and mount is not None and found != [mount.device]:
        yield Finding(
            volume=volume.name,
            problem=f"its mount at {target} is gone, or another one covers it",
            meaning="running containers go on, and new ones may not see the volume",
            remedy="start a container with the volume: the plugin then mounts it anew",
        )


def _is_mounted_without_a_user(volume: Volume, check: Check, disk: Disk) -> Iterator[Finding]:
    if disk.mounts.get(volume.record.directory) and not volume.references:
        target = check.keeper.target(volume.record.directory)
        yield Finding(
            volume=volume.name,
            problem=f"it is mounted at {target}, and no container has a reference",
            meaning="an unmount has failed, or another program has mounted there",
            remedy="`docker volume rm` and the next start of the plugin unmount it",
        )


def _has_lost_its_mount(volume: Volume, _check: Check, _disk: Disk) -> Iterator[Finding]:
    if volume.state in {State.LOST, State.LEFT}:
        yield Finding(
            volume=volume.name,
            problem=f"it has {volume.reference_count} references and no mount: {volume.last_error}",
            meaning="containers that have the mount get ENOTCONN",
            remedy="restart these containers: `docker ps --filter volume=NAME` lists them; if there"
            " are none, an engine was killed, and the next mount drops the references",
        )
    elif dead := volume.dead.total():
        yield Finding(
            volume=volume.name,
            problem=f"it has {dead} references to a mount that has ended",
            meaning="their containers get ENOTCONN, while others have a new mount",
            remedy="restart the containers that were started before the mount ended",
        )


def _has_detached_mounts(volume: Volume, check: Check, _disk: Disk) -> Iterator[Finding]:
    detached = [mount for mount in check.keeper.live_mounts(volume.name) if mount.detached]
    if detached:
        yield Finding(
            volume=volume.name,
            problem=f"{len(detached)} of its mounts are detached and still in use",
            meaning="programs that have files of them open go on; their worker ends with the last",
            remedy="end these programs, if the mounts are to end",
        )


RULES: tuple[Rule, ...] = (
    _is_not_mounted,
    _is_mounted_without_a_user,
    _has_lost_its_mount,
    _has_detached_mounts,
)
"""The rules for a volume that no request has locked."""

"""The nine verbs of a volume driver.

Create, Remove, Mount and Unmount hold the lock of their volume. Get, List and Path take no lock and
answer from memory, because dockerd forgets a volume if its Get fails.

Remove asks the kernel whether the volume is in use, and ignores the count of references, because an
engine that was killed sends no Unmount. Remove detaches the mount. The kernel ends the worker's
session once no process has a file of the mount open and no container has a bind mount of it. If the
session has not ended after `SESSION_END_S`, Remove is refused and the mount stays detached. The old
worker serves on, and the next Mount makes a second mount.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

import msgspec
import trio

from plugin import events, threads, volume_options
from plugin.admin.host import HostFacts
from plugin.admin.policy import Policy
from plugin.admin.source import HostView
from plugin.errors import (
    NoSuchVolume,
    PluginError,
    VolumeInUse,
    escaped,
)
from plugin.mounting.keeper import Keeper
from plugin.mounting.mount_spec import MountSpec
from plugin.protocol import (
    ActivateReply,
    CapabilitiesReply,
    CreateRequest,
    EmptyRequest,
    GetReply,
    ListReply,
    MountpointReply,
    MountRequest,
    Reply,
    VolumeInfo,
    VolumeRequest,
)
from plugin.volume import (
    Event,
    FileName,
    Record,
    ReferenceCounts,
    State,
    Volume,
    VolumeName,
    volume_name,
)
from plugin.volumes import creating
from plugin.volumes.inventory import Inventory
from plugin.volumes.registry import Registry
from plugin.volumes.source_check import SourceCheck, check_sources
from plugin.volumes.status import Status, mountpoint
from plugin.volumes.storage import Storage
from plugin.volumes.upgrade import Upgrade
from plugin.volumes.volume_locks import VolumeLock, VolumeLocks

log = logging.getLogger(__name__)

# Remove waits this long for the kernel to end the session of the volume's worker, which takes
# milliseconds if no process uses the mount.
SESSION_END_S = 2.0
# Volumes that List describes between two checkpoints. Another request takes about four rounds of
# the event loop, so it waits for 8 descriptions in all (50 us).
VOLUMES_AT_ONCE = 2


class Driver:
    """The volumes of this machine, and the verbs of the protocol."""

    def __init__(
        self,
        registry: Registry,
        storage: Storage,
        keeper: Keeper,
        host: HostView,
        *,
        machine: HostFacts,
        policy: Policy,
        nursery: trio.Nursery,
    ) -> None:
        """Take the volumes from *registry*; *nursery* runs the tasks beside the requests."""
        self._registry = registry
        self._storage = storage
        self._inventory = Inventory(registry, storage)
        self._keeper = keeper
        self._host = host
        self._policy = policy
        self._nursery = nursery
        # Get and List answer from these. Each change is written to the registry first.
        references, dead = registry.references, registry.dead
        self.volumes = {
            record.name: Volume(record, references.get(record.name), dead.get(record.name))
            for record in registry.records
        }
        for volume in self.volumes.values():
            self._find_mount(volume)
        self.locks = VolumeLocks()
        # The (volume, mount id) pairs of the Mounts in flight.
        self._mounting: Counter[tuple[str, str]] = Counter()
        self.purging = trio.CapacityLimiter(1)
        self._names = creating.Names(policy, host)
        self._status = Status(keeper, policy, machine)
        # Only one List describes volumes at a time, so other requests wait for one List at most.
        self._listing = trio.Lock()
        nursery.start_soon(self._prepare_status)
        nursery.start_soon(self._purge)
        checks = [self.source_check(volume) for volume in self.volumes.values()]
        nursery.start_soon(check_sources, checks, self.locks)
        self.upgrade = Upgrade(keeper, self.locks)
        nursery.start_soon(self.upgrade.run)

    async def activate(self, _: EmptyRequest) -> Reply:
        """Report the kind of this plugin."""
        return ActivateReply()

    @events.refused(events.CREATE_REFUSED)
    async def create(self, request: CreateRequest) -> Reply:
        """Create a volume; succeed if it exists with the same options.

        Raises:
            PluginError: no volume has been created.
        """
        options = await self._names.numbered(request.options)
        wanted = self._policy.parse(options)
        async with self.locks.hold(request.name, "Create") as lock:
            if (existing := self.volumes.get(VolumeName(request.name))) is not None:
                creating.refuse_difference(existing, wanted, self._policy)
                return Reply()
            name = volume_name(request.name)
            owner = self._inventory.owner(wanted.effective)
            record = Record(
                name=name,
                directory=FileName(name),
                options=options,
                created_at=datetime.now(UTC),
            )
            async with creating.checked_source(wanted, self._host, lock, owner) as source_note:
                await trio.to_thread.run_sync(self._inventory.add, record, wanted.effective)
            self.volumes[name] = Volume(record, source_note=source_note)
            creating.tell(name, options, wanted)
        return Reply()

    @events.refused(events.REMOVE_REFUSED)
    async def remove(self, request: VolumeRequest) -> Reply:
        """Remove a volume, and its files if it has no source.

        Raises:
            VolumeInUse: it is in use; its mount is detached nevertheless.
            PluginError: the volume still exists.
        """
        async with self.locks.hold(request.name, "Remove") as lock:
            volume = self.volume(request.name)
            await self._end_use(volume, lock)
            volume.check(Event.REMOVE)
            await trio.to_thread.run_sync(self._inventory.remove, volume.record)
            volume.apply(Event.REMOVE)
            del self.volumes[volume.name]
            self._status.forget(volume.name)
            kept = volume_options.has_source(volume.record.options)
            events.tell(events.REMOVED, volume.name, files="kept" if kept else "deleted")
        self._nursery.start_soon(self._purge)
        return Reply()

    @events.refused(events.MOUNT_REFUSED)
    async def mount(self, request: MountRequest) -> Reply:
        """Mount a volume, if it is not mounted, and count one more reference.

        Raises:
            PluginError: the volume is not mounted, and no reference has been counted.
        """
        with self._in_flight(request):
            return await self._mount(request)

    async def _mount(self, request: MountRequest) -> Reply:
        async with self.locks.hold(request.name, "Mount") as lock:
            volume = self.volume(request.name)
            before = self._keeper.mounted(volume.name)
            try:
                spec = self._mount_spec(volume, lock)
                mount = await self._keeper.mount(spec)
                volume.last_error = volume.source_error = ""
                counts = volume.counts_with(request.id)
                await self._write_counts(volume, counts)
            except PluginError as error:
                self._set_error(volume, str(error))
                if volume.state is not State.MOUNTED:
                    await self._keeper.unmount(volume.name)
                raise
            volume.apply(Event.MOUNT)
            volume.counts = counts
            place = {} if mount is before else mount.place | {"session": spec.options.session}
            event = events.REFERENCED if mount is before else events.MOUNTED
            events.tell(event, volume.name, request.id, references=volume.reference_count, **place)
            if mount.loss:  # the worker died while the counts were written
                volume.apply(Event.LOSE)
                volume.mark_dead()
        return MountpointReply(mountpoint=str(mount.target))

    @events.refused(events.UNMOUNT_REFUSED)
    async def unmount(self, request: MountRequest) -> Reply:
        """Count one reference less, and unmount after the last; ignore an unknown id.

        Raises:
            MountFailed: the reference is gone, but the volume is still mounted.
            VolumeBusy: the reference is still counted.
            RegistryFailed: the reference is still counted.
        """
        key = (request.name, request.id)
        if not self.volume(request.name).has_reference(request.id) and key not in self._mounting:
            return Reply()  # without the lock: there is no reference to wait for
        async with self.locks.hold(request.name, "Unmount") as lock:
            volume = self.volume(request.name)
            if volume.has_reference(request.id):
                await self._release(volume, request.id, lock)
        return Reply()

    async def path(self, request: VolumeRequest) -> Reply:
        """Return the mount point of a volume, empty if it is not mounted."""
        return MountpointReply(mountpoint=mountpoint(self.volume(request.name), self._keeper))

    async def get(self, request: VolumeRequest) -> Reply:
        """Describe a volume, in any state."""
        return GetReply(volume=self.describe(self.volume(request.name)))

    async def list_volumes(self, _: EmptyRequest) -> Reply:
        """Describe all volumes, in any state."""
        described = []
        async with self._listing:
            for number, volume in enumerate([*self.volumes.values()], 1):
                if volume.state is not State.REMOVED:  # since this List began
                    described.append(msgspec.Raw(self.describe(volume).encode()))
                if not number % VOLUMES_AT_ONCE:
                    await trio.lowlevel.checkpoint()
        return ListReply(volumes=described)

    async def capabilities(self, _: EmptyRequest) -> Reply:
        """Report that volumes are local to this machine."""
        return CapabilitiesReply()

    def is_idle(self) -> bool:
        """Return whether no volume is mounted, and no Mount is in flight."""
        mounted = any(volume.state is State.MOUNTED for volume in self.volumes.values())
        return not mounted and not self._mounting

    def volume(self, name: str) -> Volume:
        """Return the volume *name*, or raise NoSuchVolume."""
        if VolumeName(name) not in self.volumes:
            raise NoSuchVolume(name)
        return self.volumes[VolumeName(name)]

    @contextmanager
    def _in_flight(self, request: MountRequest) -> Iterator[None]:
        """Count a Mount in flight, so that an Unmount with the same id waits for the Mount."""
        key = (request.name, request.id)
        self._mounting[key] += 1
        try:
            yield
        finally:
            self._mounting -= Counter([key])

    def describe(self, volume: Volume) -> VolumeInfo:
        """Return *volume* as Get and List describe it."""
        return self._status.describe(volume, self.locks.in_flight(volume.name))

    async def _prepare_status(self) -> None:
        """Make the lasting part of each description, so that the first List is not slower."""
        for volume in [*self.volumes.values()]:
            if volume.state is not State.REMOVED:
                self._status.lasting(volume)
            await trio.lowlevel.checkpoint()

    def _find_mount(self, volume: Volume) -> None:
        """Go on with the mount of *volume* that the keeper has adopted, if there is one."""
        count = volume.reference_count
        if mount := self._keeper.watch(volume.name, partial(self._on_worker_end, volume)):
            volume.apply(Event.MOUNT)
            volume.last_error = ""
            events.tell(events.ADOPTED, volume.name, references=count, **mount.place)
        elif count:
            volume.mark_dead()
            events.tell(events.LEFT, volume.name, references=count)

    def _mount_spec(self, volume: Volume, lock: VolumeLock) -> MountSpec:
        """Return the spec of a mount of *volume*, for the request that holds *lock*."""
        resolved = self._policy.parse(volume.record.options)
        if resolved.source is None:
            origin = escaped(self._storage.shown_path(volume.record))
            open_source = partial(self._storage.open, volume.record)
        else:
            origin = f"source {resolved.served!r}"
            served = (resolved.source, resolved.effective)
            open_source = partial(self._host.open, *served, volume.note_source)
        return MountSpec(
            name=volume.name,
            directory=volume.record.directory,
            options=resolved.effective,
            origin=origin,
            open_source=open_source,
            limiter=lock.limiter,
            deadline=lock.deadline,
            on_loss=partial(self._on_worker_end, volume),
            on_step=lock.note_step,
        )

    def _on_worker_end(self, volume: Volume, reason: str) -> None:
        """Count the references of *volume* as dead, because its worker has ended."""
        volume.mark_dead()
        self._set_error(volume, reason)

    def _set_error(self, volume: Volume, reason: str) -> None:
        """Set the error of *volume* for Status; if its worker has ended, its mount is lost."""
        volume.last_error, volume.source_error = reason, ""
        if volume.state is State.MOUNTED and not self._keeper.is_served(volume.name):
            volume.apply(Event.LOSE)

    async def _write_counts(self, volume: Volume, counts: ReferenceCounts) -> None:
        """Write *counts* and the mounts of *volume* into the registry, for the next plugin."""
        mounts = self._keeper.mount_records(volume.name)
        values = (volume.name, counts.references, mounts, counts.dead)
        await trio.to_thread.run_sync(self._registry.write_references, *values)

    async def _set_counts(self, volume: Volume, counts: ReferenceCounts, lock: VolumeLock) -> bool:
        """Let *volume* have *counts*, and unmount it if there are no references; return whether."""
        if counts != volume.counts:
            await self._write_counts(volume, counts)
            volume.counts = counts
            mount = self._keeper.mounted(volume.name)
            if mount is not None and mount.loss:  # perhaps meanwhile
                volume.mark_dead()
        # Also if the counts are as before: an earlier unmount may have failed.
        if volume.state is State.IDLE or volume.references:
            return False
        unmounted = await self._keeper.unmount(volume.name, lock.deadline)
        volume.apply(Event.UNMOUNT)
        volume.last_error = ""
        return unmounted

    async def _release(self, volume: Volume, mount_id: str, lock: VolumeLock) -> None:
        """Count one reference of *mount_id* less, and unmount *volume* after the last."""
        if await self._set_counts(volume, volume.counts_without(mount_id), lock):
            events.tell(events.UNMOUNTED, volume.name, mount_id)
        else:
            events.tell(events.RELEASED, volume.name, mount_id, references=volume.reference_count)

    async def _end_use(self, volume: Volume, lock: VolumeLock) -> None:
        """Detach the mount of *volume*; then drop its references if no process uses the mount.

        An engine sends Remove only if none of its containers has the volume. References that are
        still counted may be of an engine that was killed before it sent Unmount, or of a second
        engine. The kernel can tell: it ends the worker's session once no process uses the mount.
        """
        if await self._keeper.unmount(volume.name, lock.deadline):
            events.tell(events.UNMOUNTED, volume.name)
        lock.note_step("waiting until no process uses its mount")
        deadline = min(trio.current_time() + SESSION_END_S, lock.deadline)
        if not await self._keeper.wait_until_unused(volume.name, deadline):
            if volume.state is not State.IDLE:
                self._set_error(volume, "it was unmounted to be removed, but is in use")
            raise VolumeInUse(
                f"volume {volume.name!r} cannot be removed: its files are in use, or its worker"
                f" does not answer (references: {volume.reference_count}); stop the containers and"
                " programs that use it first"
            )
        await self._set_counts(volume, ReferenceCounts(Counter(), Counter()), lock)

    def check_source(self, record: Record) -> str:
        """Check the source of *record* as `creating.check_source` does."""
        return creating.check_source(record, self._policy, self._storage, self._host)

    def source_check(self, volume: Volume) -> SourceCheck:
        """Return the check of the source of *volume*, or of its own directory."""

        def report(error: str) -> None:
            # A volume that has been mounted meanwhile has its source.
            volume.source_error = "" if volume.state is State.MOUNTED else error

        return SourceCheck(
            volume.name, lambda: volume.note_source(self.check_source(volume.record)), report
        )

    async def _purge(self) -> None:
        """Delete the files in the trash.

        The next Remove and the next start try again to delete the files that are left.
        """
        try:
            await threads.call(self._storage.purge, self.purging, lambda _: None)
        except OSError as error:
            log.warning("cannot delete the files of removed volumes: %s", error)

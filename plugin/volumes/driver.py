"""The nine verbs of a volume driver.

What changes a volume waits for its turn. Get, List and Path wait for nobody and look at memory
alone: dockerd forgets a volume whose Get fails.

Remove asks the kernel and not the count of references, because an engine that was killed never
gives back what it had mounted. Remove detaches the mount. If no user has a file open or a bind
mount of it, as a container has, the kernel ends the worker's session. If that does not come within
`VACATE_S`, Remove is refused, the users are served on, and the next Mount makes another mount.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

import msgspec
import trio

from passthrough.linux import kernel_features
from plugin import options, threads
from plugin.admin.host import HostFacts
from plugin.admin.policy import Policy
from plugin.admin.source import Host
from plugin.errors import (
    InvalidOption,
    NoSuchVolume,
    PluginError,
    VolumeExists,
    VolumeInUse,
    escaped,
)
from plugin.mounting.keeper import Keeper, MountSpec
from plugin.options import VolumeOptions
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
from plugin.volume import Event, FileName, Record, State, Users, Volume, VolumeName, volume_name
from plugin.volumes.inventory import Inventory
from plugin.volumes.registry import Registry
from plugin.volumes.source_check import Subject, survey
from plugin.volumes.status import Status, mountpoint
from plugin.volumes.storage import Storage
from plugin.volumes.volume_locks import SOURCE_DEADLINE_S, Turn, Turns

log = logging.getLogger(__name__)

# For the kernel to end a worker's session whose last user has gone: milliseconds, if there is none.
VACATE_S = 2.0
# 8 descriptions (50 us): a request that comes during a List waits for so many.
VOLUMES_AT_ONCE = 2


class Driver:
    """The volumes of this machine, and what can be done with them."""

    def __init__(
        self,
        registry: Registry,
        storage: Storage,
        keeper: Keeper,
        host: Host,
        *,
        machine: HostFacts,
        policy: Policy,
        nursery: trio.Nursery,
    ) -> None:
        """Take what the registry holds; *nursery* is for what is done beside the requests."""
        self._registry = registry
        self._storage = storage
        self._inventory = Inventory(registry, storage)
        self._keeper = keeper
        self._host = host
        self._policy = policy
        self._nursery = nursery
        # What Get and List answer from; changed after the registry and never before.
        references, dead = registry.references, registry.dead
        self._volumes = {
            record.name: Volume(record, references.get(record.name), dead.get(record.name))
            for record in registry.records
        }
        for volume in self._volumes.values():
            if keeper.watch(volume.name, partial(self._lose, volume)):
                volume.apply(Event.MOUNT)
                volume.last_error = ""
            else:
                volume.strand()
        self._turns = Turns()
        # The (volume, id) pairs whose Mount has not been answered.
        self._arriving: Counter[tuple[str, str]] = Counter()
        self._purging = trio.CapacityLimiter(1)
        self._status = Status(keeper, policy, machine)
        # One List at a time describes volumes, so that others wait for one piece of one List.
        self._listing = trio.Lock()
        nursery.start_soon(self._prepare_status)
        nursery.start_soon(self._purge)
        subjects = [self._subject(volume) for volume in self._volumes.values()]
        nursery.start_soon(survey, subjects, self._turns)

    async def activate(self, _: EmptyRequest) -> Reply:
        """Say what kind of plugin this is."""
        return ActivateReply()

    async def create(self, request: CreateRequest) -> Reply:
        """Make a volume; the same once more is a success.

        Raises:
            PluginError: nothing has been made.
        """
        wanted = self._policy.resolve(request.options)
        async with self._turns.take(request.name, "Create") as turn:
            present = self._volumes.get(VolumeName(request.name))
            if present is not None:
                self._refuse_difference(present, wanted)
                return Reply()
            name = volume_name(request.name)
            options.require_io_uring(wanted.effective, kernel_features.io_uring_obstacle())
            source_note = await self._look_at(wanted, turn)
            record = Record(
                name=name,
                directory=FileName(name),
                options=request.options,
                created_at=datetime.now(UTC),
            )
            await trio.to_thread.run_sync(self._inventory.add, record, wanted.effective)
            self._volumes[name] = Volume(record, source_note=source_note)
        for note in wanted.effective.notes:
            log.warning("volume %s: %s", name, note)
        log.info("volume %s: created, %s", name, wanted.source or "with a directory of its own")
        return Reply()

    async def remove(self, request: VolumeRequest) -> Reply:
        """Forget a volume, and delete its files if it had no source.

        Raises:
            VolumeInUse: somebody uses it, and goes on doing so.
            PluginError: it is still there.
        """
        async with self._turns.take(request.name, "Remove") as turn:
            volume = self._volume(request.name)
            await self._vacate(volume, turn)
            volume.check(Event.REMOVE)
            await trio.to_thread.run_sync(self._inventory.remove, volume.record)
            volume.apply(Event.REMOVE)
            del self._volumes[volume.name]
            self._status.forget(volume.name)
        self._nursery.start_soon(self._purge)
        log.info("volume %s: removed", volume.name)
        return Reply()

    async def mount(self, request: MountRequest) -> Reply:
        """Have a volume mounted, and count one more user.

        Raises:
            PluginError: it is not mounted, and nothing has been counted.
        """
        with self._arrival(request):
            return await self._mount(request)

    async def _mount(self, request: MountRequest) -> Reply:
        async with self._turns.take(request.name, "Mount") as turn:
            volume = self._volume(request.name)
            try:
                mount = await self._keeper.mount(self._mount_spec(volume, turn))
                volume.last_error = volume.source_error = ""
                users = volume.users_with(request.id)
                await self._record(volume, users)
            except PluginError as error:
                log.warning("volume %s: cannot be mounted: %s", volume.name, error)
                self._note_loss(volume, str(error))
                if volume.state in {State.IDLE, State.LEFT}:
                    await self._keeper.unmount(volume.name)
                raise
            volume.apply(Event.MOUNT)
            volume.users = users
            if mount.lost:  # the worker died while the users were recorded
                volume.apply(Event.LOSE)
                volume.strand()
        return MountpointReply(mountpoint=str(mount.target))

    async def unmount(self, request: MountRequest) -> Reply:
        """Count one user less, and unmount after the last; an unknown id changes nothing.

        Raises:
            MountFailed: the user is gone, the mount is not.
            VolumeBusy: the user is still counted.
            RegistryFailed: the user is still counted.
        """
        user = (request.name, request.id)
        if not self._volume(request.name).is_used_by(request.id) and user not in self._arriving:
            return Reply()  # at once: what others wait for here is no matter of this user
        async with self._turns.take(request.name, "Unmount") as turn:
            volume = self._volume(request.name)
            if volume.is_used_by(request.id):
                await self._give_back(volume, volume.users_without(request.id), turn)
        return Reply()

    async def path(self, request: VolumeRequest) -> Reply:
        """Say where a volume is mounted; an empty path if it is not."""
        return MountpointReply(mountpoint=mountpoint(self._volume(request.name), self._keeper))

    async def get(self, request: VolumeRequest) -> Reply:
        """Describe a volume, however sick it is."""
        return GetReply(volume=self._describe(self._volume(request.name)))

    async def list(self, _: EmptyRequest) -> Reply:
        """Describe all volumes, however sick they are."""
        described = []
        async with self._listing:
            for number, volume in enumerate([*self._volumes.values()], 1):
                if volume.state is not State.REMOVED:  # meanwhile
                    described.append(msgspec.Raw(self._describe(volume).encode()))
                if not number % VOLUMES_AT_ONCE:
                    await trio.lowlevel.checkpoint()
        return ListReply(volumes=described)

    async def capabilities(self, _: EmptyRequest) -> Reply:
        """Say that volumes are a matter of this machine alone."""
        return CapabilitiesReply()

    def is_idle(self) -> bool:
        """Whether no volume is mounted, or about to be."""
        mounted = any(volume.state is State.MOUNTED for volume in self._volumes.values())
        return not mounted and not self._arriving

    def _volume(self, name: str) -> Volume:
        volume = self._volumes.get(VolumeName(name))
        if volume is None:
            raise NoSuchVolume(name)
        return volume

    @contextmanager
    def _arrival(self, request: MountRequest) -> Iterator[None]:
        """Let Unmount know that the user may be counted soon."""
        user = (request.name, request.id)
        self._arriving[user] += 1
        try:
            yield
        finally:
            self._arriving -= Counter([user])

    def _describe(self, volume: Volume) -> VolumeInfo:
        return self._status.describe(volume, self._turns.under_way(volume.name))

    async def _prepare_status(self) -> None:
        """Make the lasting part of each description, so that the first List is as quick as any."""
        for volume in [*self._volumes.values()]:
            if volume.state is not State.REMOVED:
                self._status.prepare(volume)
            await trio.lowlevel.checkpoint()

    def _mount_spec(self, volume: Volume, turn: Turn) -> MountSpec:
        """Return the spec of a mount of *volume*, for the request that has *turn*."""
        understood = self._policy.resolve(volume.record.options)
        if understood.source is None:
            origin = escaped(self._storage.told(volume.record))
            open_source = partial(self._storage.open, volume.record)
        else:
            origin = f"source {understood.source!r}"
            served = (understood.source, understood.effective)
            open_source = partial(self._host.open, *served, volume.note_source)
        return MountSpec(
            name=volume.name,
            directory=volume.record.directory,
            options=understood.effective,
            origin=origin,
            open_source=open_source,
            limiter=turn.limiter,
            deadline=turn.deadline,
            on_loss=partial(self._lose, volume),
            on_step=turn.comes_to,
        )

    def _lose(self, volume: Volume, reason: str) -> None:
        """Remember that the worker of *volume* has ended, and that its users have a dead mount."""
        volume.strand()
        self._note_loss(volume, reason)

    def _note_loss(self, volume: Volume, reason: str) -> None:
        """Remember what is wrong with *volume*, and that it is not served if that is so."""
        volume.last_error, volume.source_error = reason, ""
        if volume.state is State.MOUNTED and not self._keeper.worker_pid(volume.name):
            volume.apply(Event.LOSE)

    async def _record(self, volume: Volume, users: Users) -> None:
        """Write who uses *volume*, and by which mounts, for the next plugin."""
        served = self._keeper.records(volume.name)
        use = partial(self._registry.use, volume.name, users.references, served, users.dead)
        await trio.to_thread.run_sync(use)

    async def _give_back(self, volume: Volume, users: Users, turn: Turn) -> None:
        """Go on with *users* of *volume* alone."""
        if users != volume.users:
            await self._record(volume, users)
            volume.users = users
        await self._release(volume, turn)

    async def _release(self, volume: Volume, turn: Turn) -> None:
        """Unmount *volume* if nobody uses it any more, also if that has failed before."""
        if volume.state is not State.IDLE and not volume.references:
            await self._keeper.unmount(volume.name, turn.deadline)
            volume.apply(Event.UNMOUNT)
            volume.last_error = ""

    async def _vacate(self, volume: Volume, turn: Turn) -> None:
        """Have *volume* unmounted, and refuse if it is used all the same.

        An engine asks for Remove when it knows of no container with the volume. Users that are
        counted then were never given back, because the engine was killed; or they are another's.
        The kernel knows: it ends the worker's session when nobody uses the mount any more.
        """
        if volume.state is not State.IDLE:
            await self._keeper.unmount(volume.name, turn.deadline)
        turn.comes_to("waiting for those who still use it")
        deadline = min(trio.current_time() + VACATE_S, turn.deadline)
        if not await self._keeper.wait_until_unused(volume.name, deadline):
            if volume.state is not State.IDLE:
                self._note_loss(volume, "it was unmounted to be removed, and found in use")
            raise VolumeInUse(
                f"volume {volume.name!r} cannot be removed: somebody still uses files of it, or its"
                f" worker does not answer (references: {volume.reference_count}); stop the"
                " containers and programs that use it first"
            )
        await self._give_back(volume, Users(Counter(), Counter()), turn)

    def _subject(self, volume: Volume) -> Subject:
        """What to look at after the start."""

        def look() -> None:
            understood = self._policy.resolve(volume.record.options)
            if understood.source is None:
                os.close(self._storage.open(volume.record))
            else:
                volume.source_note = self._host.check(understood.source, understood.effective)

        def note(error: str) -> None:
            # Once it is mounted, or could not be, that says more.
            volume.source_error = "" if volume.state is State.MOUNTED else error

        return Subject(volume.name, look, note)

    def _refuse_difference(self, present: Volume, wanted: VolumeOptions) -> None:
        try:
            have = self._policy.resolve(present.record.options)
        except InvalidOption as error:
            raise VolumeExists(
                f"volume {present.name!r} exists with options that are not accepted: {error}"
            ) from error
        if difference := options.difference(have, wanted):
            raise VolumeExists(f"volume {present.name!r} exists with other options: {difference}")

    async def _look_at(self, wanted: VolumeOptions, turn: Turn) -> str:
        """Refuse a source that could not be mounted; gives what there is to note of it."""
        if (source := wanted.source) is None:
            return ""
        turn.comes_to(f"looking at source {source!r}")
        look = partial(self._host.check, source, wanted.effective)
        try:
            with trio.fail_at(turn.deadline):
                return await threads.call(look, turn.limiter, lambda _: None)
        except trio.TooSlowError as error:
            raise options.refused_source(
                source, f"has not answered within {SOURCE_DEADLINE_S:g} s"
            ) from error

    async def _purge(self) -> None:
        """Delete what is in the trash; left behind at shutdown, and taken up at the next start.

        What could not be deleted is tried again after the next Remove.
        """
        try:
            await threads.call(self._storage.purge, self._purging, lambda _: None)
        except OSError as error:
            log.warning("cannot delete what was removed: %s", error)

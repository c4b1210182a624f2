"""The nine verbs of a volume driver, and at the end the table from path to verb.

Each volume has a lock of its own, so that one whose source hangs holds up no other. Get, List and
Path take no lock and look at memory alone: dockerd forgets a volume whose Get fails.
"""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import trio

from passthrough.config import effective
from plugin import blocking, options
from plugin.errors import InvalidOption, NoSuchVolume, PluginError, VolumeExists
from plugin.keeper import Keeper, Order
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
    Request,
    VolumeInfo,
    VolumeRequest,
)
from plugin.registry import Registry
from plugin.source import Host
from plugin.storage import Storage
from plugin.volume import Event, Record, State, Volume, VolumeName, volume_name

log = logging.getLogger(__name__)

# Looking at a source takes milliseconds, or for ever on a dead network file system. dockerd would
# give Create 120 s; here a person waits.
SOURCE_DEADLINE_S = 10.0


class Turn:
    """What the requests for one volume share: they run one at a time, and so do their threads."""

    __slots__ = ("limiter", "lock")

    def __init__(self) -> None:
        self.lock = trio.Lock()
        # For opening the source. A thread that hangs there holds the limiter, so that the next
        # request waits for that same thread and there is never a second one.
        self.limiter = trio.CapacityLimiter(1)

    @property
    def idle(self) -> bool:
        """Whether no request and no thread has to do with it any more."""
        return not self.lock.locked() and not self.limiter.borrowed_tokens


class Driver:
    """The volumes of this machine, and what can be done with them."""

    def __init__(
        self,
        registry: Registry,
        storage: Storage,
        keeper: Keeper,
        host: Host,
        nursery: trio.Nursery,
    ) -> None:
        """Take what the registry holds; *nursery* is for deleting what has been removed."""
        self._registry = registry
        self._storage = storage
        self._keeper = keeper
        self._host = host
        self._nursery = nursery
        # What Get and List answer from; changed after the registry and never before.
        self._volumes = {record.name: Volume(record) for record in registry.records}
        self._turns: dict[str, Turn] = {}
        self._purging = trio.CapacityLimiter(1)
        nursery.start_soon(self._purge)

    async def activate(self, _: EmptyRequest) -> Reply:
        """Say what kind of plugin this is."""
        return ActivateReply()

    async def create(self, request: CreateRequest) -> Reply:
        """Make a volume; the same once more is a success.

        Raises:
            PluginError: nothing has been made.
        """
        name = volume_name(request.name)
        wanted = options.parse(request.options)
        async with self._turn(name) as turn:
            present = self._volumes.get(name)
            if present is not None:
                _refuse_difference(present, wanted)
                return Reply()
            if wanted.source is not None:
                await self._look_at(wanted.source, turn.limiter)
            record = Record(name=name, options=request.options, created_at=datetime.now(UTC))
            await trio.to_thread.run_sync(self._store, record)
            self._volumes[name] = Volume(record)
        log.info("volume %s: created, %s", name, wanted.source or "with a directory of its own")
        return Reply()

    async def remove(self, request: VolumeRequest) -> Reply:
        """Forget a volume, and delete its files if it had no source.

        Raises:
            VolumeInUse: it is mounted.
            PluginError: it is still there.
        """
        async with self._turn(request.name):
            volume = self._volume(request.name)
            await self._release(volume)
            volume.check(Event.REMOVE)
            await trio.to_thread.run_sync(self._erase, volume.record)
            volume.apply(Event.REMOVE)
            del self._volumes[volume.name]
        self._nursery.start_soon(self._purge)
        log.info("volume %s: removed", volume.name)
        return Reply()

    async def mount(self, request: MountRequest) -> Reply:
        """Have a volume mounted, and count one more user.

        Raises:
            PluginError: it is not mounted, and nothing has been counted.
        """
        async with self._turn(request.name) as turn:
            volume = self._volume(request.name)
            try:
                await self._keeper.mount(self._order(volume, turn.limiter))
            except PluginError as error:
                log.warning("volume %s: cannot be mounted: %s", volume.name, error)
                self._note_loss(volume, str(error))
                raise
            volume.apply(Event.MOUNT)
            volume.add_reference(request.id)
            volume.last_error = ""
        return MountpointReply(mountpoint=str(self._keeper.target(volume.name)))

    async def unmount(self, request: MountRequest) -> Reply:
        """Count one user less, and unmount after the last; an unknown id changes nothing.

        Raises:
            MountFailed: the user is gone, the mount is not.
        """
        async with self._turn(request.name):
            volume = self._volume(request.name)
            if volume.drop_reference(request.id):
                await self._release(volume)
        return Reply()

    async def path(self, request: VolumeRequest) -> Reply:
        """Say where a volume is mounted; an empty path if it is not."""
        return MountpointReply(mountpoint=self._mountpoint(self._volume(request.name)))

    async def get(self, request: VolumeRequest) -> Reply:
        """Describe a volume, however sick it is."""
        return GetReply(volume=self._describe(self._volume(request.name)))

    async def list(self, _: EmptyRequest) -> Reply:
        """Describe all volumes, however sick they are."""
        return ListReply(volumes=[self._describe(volume) for volume in self._volumes.values()])

    async def capabilities(self, _: EmptyRequest) -> Reply:
        """Say that volumes are a matter of this machine alone."""
        return CapabilitiesReply()

    def _volume(self, name: str) -> Volume:
        volume = self._volumes.get(VolumeName(name))
        if volume is None:
            raise NoSuchVolume(name)
        return volume

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[Turn]:
        """Wait until no other request changes *name*."""
        turn = self._turns.setdefault(name, Turn())
        try:
            async with turn.lock:
                yield turn
        finally:
            if turn.idle:
                self._turns.pop(name, None)

    def _describe(self, volume: Volume) -> VolumeInfo:
        status: dict[str, object] = {
            "mounted": volume.state is State.MOUNTED,
            "references": volume.reference_count,
            "worker_pid": self._keeper.worker_pid(volume.name),
        }
        try:
            understood = options.parse(volume.record.options)
        except InvalidOption as error:  # of a passfs that knew other options
            status |= {"options": dict(volume.record.options), "error": str(error)}
        else:
            source = understood.source or str(self._storage.path(volume.name))
            status |= {"options": effective(understood.config), "source": source}
        if volume.last_error:
            status["error"] = volume.last_error
        return VolumeInfo(
            name=volume.name,
            created_at=volume.record.created_at,
            mountpoint=self._mountpoint(volume),
            status=status,
        )

    def _mountpoint(self, volume: Volume) -> str:
        return "" if volume.state is State.IDLE else str(self._keeper.target(volume.name))

    def _order(self, volume: Volume, limiter: trio.CapacityLimiter) -> Order:
        """What the keeper is to mount for *volume*."""
        understood = options.parse(volume.record.options)
        if understood.source is None:
            origin = str(self._storage.path(volume.name))
            open_source = partial(self._storage.open, volume.name)
        else:
            origin = f"source {understood.source!r}"
            open_source = partial(self._host.open, understood.source)
        return Order(
            name=volume.name,
            config=understood.config,
            origin=origin,
            open_source=open_source,
            limiter=limiter,
            lost=partial(self._note_loss, volume),
        )

    def _note_loss(self, volume: Volume, reason: str) -> None:
        """Remember what is wrong with *volume*, and that it is not served if that is so."""
        volume.last_error = reason
        if volume.state is State.MOUNTED and not self._keeper.worker_pid(volume.name):
            volume.apply(Event.LOSE)

    async def _release(self, volume: Volume) -> None:
        """Unmount *volume* if nobody uses it any more, also if that has failed before."""
        if volume.state is not State.IDLE and not volume.references:
            await self._keeper.unmount(volume.name)
            volume.apply(Event.UNMOUNT)
            volume.last_error = ""

    async def _look_at(self, source: str, limiter: trio.CapacityLimiter) -> None:
        """Refuse a source that could not be mounted."""
        try:
            with trio.fail_after(SOURCE_DEADLINE_S):
                os.close(await blocking.call(partial(self._host.open, source), limiter, os.close))
        except trio.TooSlowError as error:
            raise options.refused_source(
                source, f"has not answered within {SOURCE_DEADLINE_S:g} s"
            ) from error

    # Both run in a thread and whole, whoever goes away meanwhile: a record without its directory
    # could not be mounted, a directory without its record would be in the way of a new volume.

    def _store(self, record: Record) -> None:
        if options.has_source(record.options):
            self._registry.add(record)
            return
        self._storage.create(record.name)
        try:
            self._registry.add(record)
        except PluginError:
            self._storage.discard(record.name)
            raise

    def _erase(self, record: Record) -> None:
        if options.has_source(record.options):
            self._registry.remove(record.name)
            return
        # In this order, so that a crash in between leaves a volume that can be removed once more.
        token = self._storage.discard(record.name)
        try:
            self._registry.remove(record.name)
        except PluginError:
            self._storage.restore(record.name, token)
            raise

    async def _purge(self) -> None:
        """Delete what is in the trash; left behind at shutdown, and taken up at the next start.

        What could not be deleted is tried again after the next Remove.
        """
        try:
            await blocking.call(self._storage.purge, self._purging, lambda _: None)
        except OSError as error:
            log.warning("cannot delete what was removed: %s", error)


def _refuse_difference(present: Volume, wanted: VolumeOptions) -> None:
    difference = options.difference(options.parse(present.record.options), wanted)
    if difference:
        raise VolumeExists(f"volume {present.name!r} exists with other options: {difference}")


class Verb(NamedTuple):
    """How one path of the protocol is answered."""

    request: type[Request]
    perform: Callable[[Driver, Any], Awaitable[Reply]]
    undo: Callable[[Driver, Any], Awaitable[Reply]] | None = None
    """Takes the effect back if the client has gone before it could be told. dockerd sends no
    Unmount after a Mount that failed for it; what the others do it asks for again."""


VERBS: Mapping[str, Verb] = {
    "/Plugin.Activate": Verb(EmptyRequest, Driver.activate),
    "/VolumeDriver.Create": Verb(CreateRequest, Driver.create),
    "/VolumeDriver.Remove": Verb(VolumeRequest, Driver.remove),
    "/VolumeDriver.Mount": Verb(MountRequest, Driver.mount, undo=Driver.unmount),
    "/VolumeDriver.Path": Verb(VolumeRequest, Driver.path),
    "/VolumeDriver.Unmount": Verb(MountRequest, Driver.unmount),
    "/VolumeDriver.Get": Verb(VolumeRequest, Driver.get),
    "/VolumeDriver.List": Verb(EmptyRequest, Driver.list),
    "/VolumeDriver.Capabilities": Verb(EmptyRequest, Driver.capabilities),
}

"""The table from the paths of the protocol to the verbs of the driver."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from plugin.protocol import CreateRequest, EmptyRequest, MountRequest, Reply, Request, VolumeRequest
from plugin.volumes.driver import Driver

Perform = Callable[[Driver, Any], Awaitable[Reply]]


class Verb(NamedTuple):
    """How one path of the protocol is answered."""

    request: type[Request]
    perform: Perform
    undo: Perform | None = None
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

"""The table from the paths of the protocol to the verbs of the driver."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from plugin.protocol import CreateRequest, EmptyRequest, MountRequest, Reply, Request, VolumeRequest
from plugin.volumes.driver import Driver

Perform = Callable[[Driver, Any], Awaitable[Reply]]


class Verb(NamedTuple):
    """A verb of the protocol: the type of its request, and the method that performs it."""

    request: type[Request]
    perform: Perform
    undo: Perform | None = None
    """Undoes `perform` if the client hangs up before the answer. If dockerd gets no answer to a
    Mount, it sends no Unmount; it repeats the other verbs."""


VERBS: Mapping[str, Verb] = {
    "/Plugin.Activate": Verb(EmptyRequest, Driver.activate),
    "/VolumeDriver.Create": Verb(CreateRequest, Driver.create),
    "/VolumeDriver.Remove": Verb(VolumeRequest, Driver.remove),
    "/VolumeDriver.Mount": Verb(MountRequest, Driver.mount, undo=Driver.unmount),
    "/VolumeDriver.Path": Verb(VolumeRequest, Driver.path),
    "/VolumeDriver.Unmount": Verb(MountRequest, Driver.unmount),
    "/VolumeDriver.Get": Verb(VolumeRequest, Driver.get),
    "/VolumeDriver.List": Verb(EmptyRequest, Driver.list_volumes),
    "/VolumeDriver.Capabilities": Verb(EmptyRequest, Driver.capabilities),
    # For `passfs upgrade`; no engine knows it.
    "/Passfs.Programs": Verb(
        EmptyRequest, lambda driver, request: driver.upgrade.programs(request)
    ),
}

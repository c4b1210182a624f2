"""The table of the control socket: from method and path to the function that answers `passfs`."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from plugin.protocol import BENCH_ID, EmptyRequest, MountRequest, Reply, SetRequest, VolumeRequest
from plugin.volumes.changing import Changing
from plugin.volumes.check import Check
from plugin.volumes.details import Details
from plugin.volumes.driver import Driver


class Answers(NamedTuple):
    """The parts of the plugin that answer."""

    driver: Driver
    details: Details
    check: Check
    changing: Changing


def _bench(request: VolumeRequest) -> MountRequest:
    return MountRequest(name=request.name, id=BENCH_ID)


Answer = Callable[[Answers, Any], Awaitable[Reply]]

ANSWERS: Mapping[tuple[str, str], Answer] = {
    ("GET", "/health"): lambda answers, _: answers.details.health(),
    ("GET", "/volumes"): lambda answers, _: answers.driver.list_volumes(EmptyRequest()),
    ("GET", "/volumes/{name}"): lambda answers, request: answers.details.get(request),
    ("GET", "/volumes/{name}/check"): lambda answers, request: answers.check.one(request),
    ("PATCH", "/volumes/{name}"): lambda answers, request: answers.changing.set(request),
    ("POST", "/volumes/{name}/bench"): lambda answers, request: answers.driver.mount(
        _bench(request)
    ),
    ("DELETE", "/volumes/{name}/bench"): lambda answers, request: answers.driver.unmount(
        _bench(request)
    ),
    ("DELETE", "/volumes/{name}"): lambda answers, request: answers.driver.remove(request),
    ("GET", "/counters"): lambda answers, _: answers.details.counters(),
    ("GET", "/check"): lambda answers, _: answers.check.all(),
}
"""`{name}` stands for the URL-quoted name of a volume."""

BODIES: Mapping[tuple[str, str], type[VolumeRequest]] = {("PATCH", "/volumes/{name}"): SetRequest}
"""The requests that have a body."""

"""The table of the control socket: from method and path to the function that answers `passfs`."""

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from plugin.protocol import BENCH_ID, EmptyRequest, MountRequest, Reply, VolumeRequest
from plugin.volumes.check import Check
from plugin.volumes.details import Details
from plugin.volumes.driver import Driver


class Answers(NamedTuple):
    """The parts of the plugin that answer."""

    driver: Driver
    details: Details
    check: Check


def _bench(request: VolumeRequest) -> MountRequest:
    return MountRequest(name=request.name, id=BENCH_ID)


Answer = Callable[[Answers, VolumeRequest], Awaitable[Reply]]

ANSWERS: Mapping[tuple[str, str], Answer] = {
    ("GET", "/health"): lambda answers, _: answers.details.health(),
    ("GET", "/volumes"): lambda answers, _: answers.driver.list_volumes(EmptyRequest()),
    ("GET", "/volumes/{name}"): lambda answers, request: answers.details.get(request),
    ("GET", "/volumes/{name}/check"): lambda answers, request: answers.check.one(request),
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

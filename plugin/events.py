"""The events in the life of a volume: one line of the log for each.

The line is `volume NAME: TEXT, mount ID`. The id is that of the engine's request; without a request
the line ends with the text. The JSON format of the log has the fields of the text as well.

EVENTS is the table, and `tell` logs an event. The events of workers and guards are in
passthrough/worker/events.py: they log lines, and `retell` reads the fields from these lines.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Final, Protocol, TypeAlias, TypeVar

from passthrough.worker import events as of_workers
from passthrough.worker.events import Event
from plugin import log as logs
from plugin.errors import NoSuchVolume, PluginError

log = logging.getLogger(__name__)

Field: TypeAlias = str | int | float | Mapping[str, str]
"""A value in the line of an event."""


class _About(Protocol):
    """A request about a volume."""

    @property
    def name(self) -> str: ...


D = TypeVar("D")
R = TypeVar("R", bound=_About)
T = TypeVar("T")
Verb: TypeAlias = Callable[[D, R], Awaitable[T]]

CREATED: Final = Event(
    "created",
    logging.INFO,
    "created, source {source}, options {options}",
    "Create; without a source the volume has a directory of its own",
)
CREATE_REFUSED: Final = Event(
    "create_refused", logging.INFO, "cannot be created: {reason}", "a Create that failed"
)
MOUNTED: Final = Event(
    "mounted",
    logging.INFO,
    "mounted, worker {worker}, device {device}, session {session}, references {references}",
    "the first Mount",
)
REFERENCED: Final = Event(
    "referenced",
    logging.INFO,
    "another reference, references {references}",
    "a Mount of a volume that is mounted",
)
MOUNT_REFUSED: Final = Event(
    "mount_refused", logging.WARNING, "cannot be mounted: {reason}", "a Mount that failed"
)
RELEASED: Final = Event(
    "released",
    logging.INFO,
    "reference released, references {references}",
    "an Unmount, if there are more references or no mount",
)
UNMOUNTED: Final = Event(
    "unmounted",
    logging.INFO,
    "unmounted",
    "the last Unmount; a Remove of a mounted volume; the end of the plugin without a service"
    " manager",
)
UNMOUNT_REFUSED: Final = Event(
    "unmount_refused", logging.INFO, "cannot be unmounted: {reason}", "an Unmount that failed"
)
CHANGED: Final = Event(
    "changed",
    logging.INFO,
    "option {option} changes from {before} to {after}, {when}",
    "an option that `passfs set` changes, now or for the next mount",
)
REMOVED: Final = Event(
    "removed",
    logging.INFO,
    "removed, files {files}",
    "Remove; the files are `deleted`, or `kept` in the source",
)
REMOVE_REFUSED: Final = Event(
    "remove_refused", logging.INFO, "cannot be removed: {reason}", "a Remove that failed"
)
LOST: Final = Event(
    "lost",
    logging.WARNING,
    "mount lost: worker {worker} {cause}; the volume fails until it is mounted again",
    "no process serves the mount any more",
)
NOT_WHOLE: Final = Event(
    "not_whole",
    logging.WARNING,
    "its mount is not whole, making a new one",
    "a Mount of a volume whose mount was lost or covered",
)
ADOPTED: Final = Event(
    "adopted",
    logging.INFO,
    "adopted, worker {worker}, device {device}, references {references}",
    "the start of a plugin that goes on with the mount of an earlier one",
)
LEFT: Final = Event(
    "left",
    logging.INFO,
    "its mount has ended with an earlier plugin, references {references}",
    "the start of a plugin that finds references without a mount",
)
NOT_TAKEN_OVER: Final = Event(
    "not_taken_over",
    logging.WARNING,
    "an older program serves on: {reason}",
    "an upgrade of the volume that failed",
)

EVENTS: Final = (
    *(CREATED, CREATE_REFUSED, MOUNTED, REFERENCED, MOUNT_REFUSED, RELEASED, UNMOUNTED),
    *(
        UNMOUNT_REFUSED,
        CHANGED,
        REMOVED,
        REMOVE_REFUSED,
        LOST,
        NOT_WHOLE,
        ADOPTED,
        LEFT,
        NOT_TAKEN_OVER,
    ),
    *of_workers.EVENTS,
)
"""All events, those of workers and guards last."""


def tell(event: Event, volume: str, mount_id: str = "", /, **fields: Field) -> None:
    """Log *event* of *volume*; *mount_id* is that of the engine's request, if there is one."""
    if log.isEnabledFor(event.level):
        _write(event, volume, mount_id, fields)


def _write(event: Event, volume: str, mount_id: str, fields: Mapping[str, Field]) -> None:
    text = event.text.format(**{name: _shown(value) for name, value in fields.items()})
    tail = f", mount {mount_id}" if mount_id else ""
    ids = {"mount_id": mount_id} if mount_id else {}
    extra = {"fields": {"event": event.name, **ids, **fields}}
    logs.write(log, event.level, "volume %s: %s%s", volume, text, tail, extra=extra)


def retell(volume: str, line: str) -> bool:
    """Log the event in *line*, by a process of *volume*; return False if there is none.

    Whether the level of the event is logged is the caller's decision.
    """
    if (found := of_workers.told(line)) is None:
        return False
    event, fields = found
    _write(event, volume, "", fields)
    return True


def refused(event: Event) -> Callable[[Verb[D, R, T]], Verb[D, R, T]]:
    """Return a decorator of verbs that logs each refusal as *event*, unless there is no volume."""

    def decorate(perform: Verb[D, R, T]) -> Verb[D, R, T]:
        @wraps(perform)
        async def performed(driver: D, request: R) -> T:
            try:
                return await perform(driver, request)
            except NoSuchVolume:
                raise
            except PluginError as error:
                tell(event, request.name, getattr(request, "id", ""), reason=str(error))
                raise

        return performed

    return decorate


def _shown(value: Field) -> Field:
    """Return *value* as the text of a line has it."""
    if isinstance(value, Mapping):
        value = ",".join(f"{name}={text}" for name, text in value.items())
    return "none" if value == "" else value

"""A volume: its record, its state and who has it mounted; no I/O.

The state changes by the table `TRANSITIONS` alone. A missing row is a refusal.

References are counts per mount id and not a set of ids: `docker cp` on a running container mounts
and unmounts once more with the id of the running mount.
"""

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, NewType

import msgspec

from plugin.errors import BadRequest, VolumeInUse, quoted

VolumeName = NewType("VolumeName", str)
"""A name that `volume_name` has let through: usable as the name of a file in any directory."""

# The rule of Docker's own local driver, with the length bounded: dockerd does not check the names
# of plugins' volumes, and ours become names of directories and mount points.
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
NAME_ACCEPTED = "1 to 128 of the characters a-z A-Z 0-9 _ . -, the first a letter or a digit"


def volume_name(text: str) -> VolumeName:
    """*text* as the name of a volume that may be created.

    Raises:
        BadRequest: quotes the name and says what is accepted.
    """
    if NAME.fullmatch(text) is None:
        raise BadRequest(f"volume name {quoted(text)} is not accepted; expected {NAME_ACCEPTED}")
    return VolumeName(text)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the registry keeps of a volume."""

    name: VolumeName
    options: Mapping[str, str]
    """As the user gave them, `source` among them."""
    created_at: datetime
    """With a time zone."""


class Served(NamedTuple):
    """What a successor of this plugin has to know of a mount in order to go on with it."""

    volume: VolumeName
    number: int
    """What its descriptors are called while the service manager keeps them; each mount has another
    one, also after a restart."""
    device: int
    """As in st_dev."""
    report: str
    """What its worker said when it began to serve (`passthrough.handover.Report`), as JSON."""


class State(StrEnum):
    """What is true of a volume's mount."""

    IDLE = "idle"
    MOUNTED = "mounted"
    LOST = "lost"
    """Mounted, but its worker is dead: users get errors until the next Mount heals it."""
    REMOVED = "removed"


class Event(StrEnum):
    """What can happen to a volume; the values complete the sentence of a refusal."""

    MOUNT = "be mounted"
    LOSE = "lose its worker"
    UNMOUNT = "be unmounted"
    REMOVE = "be removed"


TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.IDLE, Event.MOUNT): State.MOUNTED,
    (State.MOUNTED, Event.MOUNT): State.MOUNTED,
    (State.LOST, Event.MOUNT): State.MOUNTED,
    (State.MOUNTED, Event.LOSE): State.LOST,
    (State.MOUNTED, Event.UNMOUNT): State.IDLE,
    (State.LOST, Event.UNMOUNT): State.IDLE,
    (State.IDLE, Event.REMOVE): State.REMOVED,
}


class Volume:
    """One volume of the driver; every change happens under the driver's lock for its name."""

    __slots__ = ("last_error", "record", "references", "state")

    def __init__(self, record: Record, references: Mapping[str, int] | None = None) -> None:
        """A volume that is not mounted; *references* were counted by a plugin that has ended."""
        self.record = record
        self.references = Counter(references or {})
        self.state = State.LOST if self.references else State.IDLE
        self.last_error = "ended" if self.references else ""

    @property
    def name(self) -> VolumeName:
        """The volume's name."""
        return self.record.name

    @property
    def reference_count(self) -> int:
        """How many mounts have not been given back."""
        return self.references.total()

    def check(self, event: Event) -> State:
        """The state that *event* leads to.

        Raises:
            VolumeInUse: the event is not allowed in the present state.
        """
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            raise VolumeInUse(
                f"volume {self.name!r} cannot {event}: it is {self.state}"
                f" (references: {self.reference_count}); stop the containers that use it first"
            )
        return state

    def apply(self, event: Event) -> None:
        """Move to the state that *event* leads to.

        Raises:
            VolumeInUse: the event is not allowed in the present state.
        """
        self.state = self.check(event)

    def references_with(self, mount_id: str) -> Counter[str]:
        """What is counted after one more Mount of *mount_id*."""
        present = Counter[str]() if self.state is State.LOST else self.references
        return present + Counter([mount_id])

    def references_without(self, mount_id: str) -> Counter[str]:
        """What is counted after an Unmount of *mount_id*, which changes nothing if it has none."""
        return self.references - Counter([mount_id])

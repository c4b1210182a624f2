"""A volume: its record, its state and who has it mounted; no I/O.

The state changes by the table `TRANSITIONS` alone. A missing row is a refusal.

References are counts per mount id and not a set of ids: `docker cp` on a running container mounts
and unmounts once more with the id of the running mount.

Of several references of one mount id, the engine gives the last one back first: `docker cp` mounts
with the id of the container that goes on. If a mount ends without its users, because its worker or
the plugin has ended, its references count as dead until the users give them back. The next Mount
counts anew, because an engine that was killed mounts with the ids that it had, and gives each back
once.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, NewType

import msgspec

from plugin.errors import BadRequest, VolumeInUse, quoted

VolumeName = NewType("VolumeName", str)
"""The name of a volume: of a new one as `volume_name` accepts it, of an older one any text."""

FileName = NewType("FileName", str)
"""The name of a volume's directory and of its mount point: one component of a path."""

# The rule of Docker for its own volumes (moby, daemon/names), with a bound: NAME_MAX is 255 bytes.
# dockerd does not hold the names of a plugin's volumes against it.
LONGEST_NAME = 200
ACCEPTED = re.compile(rf"[a-zA-Z0-9][a-zA-Z0-9_.-]{{1,{LONGEST_NAME - 1}}}")
EXPECTED = (
    f"2 to {LONGEST_NAME} characters out of a-z, A-Z, 0-9, '_', '.' and '-', of which the first is"
    " a letter or a digit"
)
NAME_MAX_BYTES = 255


def volume_name(text: str) -> VolumeName:
    """Return *text* as the name of a new volume.

    Raises:
        BadRequest: quotes the name and says what is accepted.
    """
    if ACCEPTED.fullmatch(text) is not None:
        return VolumeName(text)
    refusal = f"volume name {quoted(text)} is not accepted; expected {EXPECTED}"
    if len(text) == 1 and text.isalpha():
        refusal += f"; `docker run -v {text}:/data` takes a single letter for a Windows drive"
    raise BadRequest(refusal)


def file_name(text: str) -> FileName:
    """Return *text* as the name of a file.

    Raises:
        ValueError: *text* is not one component of a path.
    """
    too_long = len(os.fsencode(text)) > NAME_MAX_BYTES
    if text in {"", ".", ".."} or "/" in text or "\0" in text or too_long:
        raise ValueError(f"{quoted(text)} is no name of a file")
    return FileName(text)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the registry keeps of a volume."""

    name: VolumeName
    directory: FileName
    """The name of its directory, if it has no source, and of its mount point; no other volume has
    the same one."""
    options: Mapping[str, str]
    """As the user gave them, `source` among them."""
    created_at: datetime
    """With a time zone."""


VOLUMES = "volumes"
"""The directory in the data directory that holds the directories of volumes without a source."""


def directory_in(data_dir: Path, volume: Record) -> Path:
    """Return the path of the directory of *volume*, where *data_dir* is that of the plugin."""
    return data_dir / VOLUMES / volume.directory


class Served(NamedTuple):
    """What a successor of this plugin has to know of a mount in order to go on with it."""

    volume: VolumeName
    number: int
    """What its descriptors are called while the service manager keeps them; each mount has another
    one, also after a restart."""
    device: int
    """As in st_dev; 0 of a mount that has been detached."""
    report: str
    """The report of its worker when it began to serve (passthrough.worker.handover), as JSON."""


class State(StrEnum):
    """What is true of a volume's mount."""

    IDLE = "idle"
    MOUNTED = "mounted"
    LOST = "lost"
    """Mounted for some, but its worker is dead or its mount is gone from the mount point; the next
    Mount heals it."""
    LEFT = "left by a plugin that has ended"
    """It was mounted then, and is not; who used it gets errors until it is started again."""
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
    (State.LEFT, Event.MOUNT): State.MOUNTED,
    (State.MOUNTED, Event.LOSE): State.LOST,
    (State.MOUNTED, Event.UNMOUNT): State.IDLE,
    (State.LOST, Event.UNMOUNT): State.IDLE,
    (State.LEFT, Event.UNMOUNT): State.IDLE,
    (State.IDLE, Event.REMOVE): State.REMOVED,
}


ENDED = (
    "the plugin has ended while it was mounted; containers that used it then get errors until they"
    " are started again"
)


class Users(NamedTuple):
    """The mounts of a volume that have not been given back, by their ids, with counts."""

    references: Counter[str]
    dead: Counter[str]
    """Those of a mount whose worker or plugin has ended since; among the references, or of a time
    before them."""


class Volume:
    """One volume of the driver; every change happens under the driver's lock for its name."""

    __slots__ = (
        *("dead", "last_error", "record", "references"),
        *("source_error", "source_note", "state"),
    )

    def __init__(
        self,
        record: Record,
        references: Mapping[str, int] | None = None,
        dead: Mapping[str, int] | None = None,
        *,
        source_note: str = "",
    ) -> None:
        """A volume that is not mounted; a plugin that has ended counted *references* and *dead*."""
        self.record = record
        self.references = Counter(references or {})
        """How many mounts of each mount id have not been given back; changed after the registry."""
        self.dead = Counter(dead or {})
        """As in `Users`."""
        self.state = State.LEFT if self.references else State.IDLE
        self.last_error = ENDED if self.references else ""
        """Why the last Mount failed, or the mount is lost."""
        self.source_error = ""
        """Why a Mount would have failed when the plugin was started."""
        self.source_note = source_note
        """A limit of the source that the plugin saw when it last opened the source."""

    @property
    def name(self) -> VolumeName:
        """The volume's name."""
        return self.record.name

    @property
    def reference_count(self) -> int:
        """How many mounts have not been given back."""
        return self.references.total()

    @property
    def users(self) -> Users:
        """The references, and which of them are dead."""
        return Users(self.references, self.dead)

    @users.setter
    def users(self, users: Users) -> None:
        self.references, self.dead = users

    def strand(self) -> None:
        """Count all references as dead: the mount that they are of has ended."""
        self.dead |= self.references

    def is_used_by(self, mount_id: str) -> bool:
        """Return whether there is something of *mount_id* to give back."""
        return bool(self.references[mount_id] or self.dead[mount_id])

    def note_source(self, note: str) -> None:
        """Remember what Status is to say of the source, or that there is nothing to say."""
        self.source_note = note

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

    def users_with(self, mount_id: str) -> Users:
        """Return the users after one more Mount of *mount_id*."""
        return Users(self.references_with(mount_id), self._dead_with(mount_id))

    def users_without(self, mount_id: str) -> Users:
        """Return the users after an Unmount of *mount_id*."""
        return Users(self.references_without(mount_id), self._dead_without(mount_id))

    def references_with(self, mount_id: str) -> Counter[str]:
        """What is counted after one more Mount of *mount_id*.

        Those who had the mount of a plugin that has ended are no users of this one's, whether they
        give theirs back or not. An engine that has been killed does not, and mounts with the same
        ids again.
        """
        present = Counter[str]() if self.state is State.LEFT else self.references
        return present + Counter([mount_id])

    def references_without(self, mount_id: str) -> Counter[str]:
        """What is counted after an Unmount of *mount_id*, which changes nothing if it has none."""
        return self.references - Counter([mount_id])

    def _dead_with(self, mount_id: str) -> Counter[str]:
        """Return the dead references after one more Mount of *mount_id*.

        `docker cp` mounts with the id of a container that goes on. But if the id has only a dead
        reference of an earlier time, the engine was killed and has started the container again.
        """
        counted = self.references[mount_id] and self.state is not State.LEFT
        return Counter(self.dead) if counted else self.dead - Counter([mount_id])

    def _dead_without(self, mount_id: str) -> Counter[str]:
        """Return the dead references after an Unmount of *mount_id*.

        Of several references of one id the engine gives the last one back first.
        """
        if not self.references[mount_id]:
            return self.dead - Counter([mount_id])
        left = self.references_without(mount_id)[mount_id]
        return self.dead - Counter({mount_id: max(0, self.dead[mount_id] - left)})

"""A volume: its record, its state and its references; no I/O.

Only the table `TRANSITIONS` changes the state. A missing row is a refusal.

A reference is a Mount without its Unmount. References are counted per mount id: `docker cp` on a
running container mounts and unmounts with the id of the container's own mount. If an id has several
references, the engine's next Unmount is for the newest one.

If a mount loses its worker, its references count as dead until their Unmounts. If a plugin ends and
the next plugin does not adopt a mount, its references are dead too, and the next Mount drops them
all and counts anew. A killed engine starts its containers again with their old mount ids, and later
sends one Unmount for each id.
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
"""The name of a volume: `volume_name` accepts a new one; an older passfs accepted any text."""

FileName = NewType("FileName", str)
"""The name of a volume's directory and of its mount point: one path component."""

# Docker's rule for its local volumes (moby, daemon/names), with a limit, because NAME_MAX is 255
# bytes. dockerd does not check the names of a plugin's volumes.
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
        ValueError: *text* is not one path component.
    """
    too_long = len(os.fsencode(text)) > NAME_MAX_BYTES
    if text in {"", ".", ".."} or "/" in text or "\0" in text or too_long:
        raise ValueError(f"{quoted(text)} is no name of a file")
    return FileName(text)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as the registry keeps it."""

    name: VolumeName
    directory: FileName
    """The name of its directory, if it has no source, and of its mount point; unique."""
    options: Mapping[str, str]
    """The options as the user gave them, with `source`."""
    created_at: datetime
    """With a time zone."""


VOLUMES = "volumes"
"""The directory in the data directory that holds the directories of volumes without a source."""


def directory_in(data_dir: Path, record: Record) -> Path:
    """Return the path of the directory of *record* below *data_dir*."""
    return data_dir / VOLUMES / record.directory


class MountRecord(NamedTuple):
    """The facts about a mount that the next plugin needs to keep it."""

    volume: VolumeName
    number: int
    """The number in the names of its descriptors in the service manager's store; unique, also after
    a restart."""
    device: int
    """As in st_dev; 0 if the mount has been detached."""
    report: str
    """The worker's report from when it began to serve (passthrough.worker.handover), as JSON."""


class State(StrEnum):
    """The state of a volume's mount."""

    IDLE = "idle"
    MOUNTED = "mounted"
    LOST = "lost"
    """It has references, but its worker is dead or its mount is gone from the mount point. The next
    Mount mounts it again."""
    LEFT = "left by a plugin that has ended"
    """The volume has references to the mount of an ended plugin, but is not mounted. Containers
    with that mount get errors until they are restarted."""
    REMOVED = "removed"


class Event(StrEnum):
    """A change of a volume's state; the values complete the sentence of a refusal."""

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
    "the plugin ended while the volume was mounted; restart the containers that used it, which get"
    " ENOTCONN"
)


class ReferenceCounts(NamedTuple):
    """The references of a volume, counted by mount id."""

    references: Counter[str]
    dead: Counter[str]
    """The references to mounts that have lost their worker or plugin. Each is also in `references`,
    unless a Mount after the end of a plugin dropped it there."""


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
        """Take *references* and *dead* as an earlier plugin counted them; nothing is mounted."""
        self.record = record
        self.references = Counter(references or {})
        """The count of references by mount id; written to the registry first."""
        self.dead = Counter(dead or {})
        """As in `ReferenceCounts`."""
        self.state = State.LEFT if self.references else State.IDLE
        self.last_error = ENDED if self.references else ""
        """The error of the last Mount, or the reason why the mount is lost; empty without one."""
        self.source_error = ""
        """The error of the source check after the start of the plugin; empty without one."""
        self.source_note = source_note
        """The note from the last time the plugin opened the source, on a limit of the source."""

    @property
    def name(self) -> VolumeName:
        """The volume's name."""
        return self.record.name

    @property
    def reference_count(self) -> int:
        """The count of references of all mount ids."""
        return self.references.total()

    @property
    def counts(self) -> ReferenceCounts:
        """The references and the dead references."""
        return ReferenceCounts(self.references, self.dead)

    @counts.setter
    def counts(self, counts: ReferenceCounts) -> None:
        self.references, self.dead = counts

    def mark_dead(self) -> None:
        """Count all references as dead, because their mount has ended."""
        self.dead |= self.references

    def has_reference(self, mount_id: str) -> bool:
        """Return whether *mount_id* has a reference or a dead reference."""
        return bool(self.references[mount_id] or self.dead[mount_id])

    def note_source(self, note: str) -> None:
        """Set the note on the source for Status; empty for none."""
        self.source_note = note

    def check(self, event: Event) -> State:
        """Return the state that *event* leads to.

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

    def counts_with(self, mount_id: str) -> ReferenceCounts:
        """Return the counts after one more Mount of *mount_id*."""
        return ReferenceCounts(self.references_with(mount_id), self._dead_with(mount_id))

    def counts_without(self, mount_id: str) -> ReferenceCounts:
        """Return the counts after an Unmount of *mount_id*."""
        return ReferenceCounts(self.references_without(mount_id), self._dead_without(mount_id))

    def references_with(self, mount_id: str) -> Counter[str]:
        """Return the references after one more Mount of *mount_id*.

        The first Mount after a plugin has ended drops the references to that plugin's mounts. A
        killed engine never sends Unmount for them, and mounts again with the same ids.
        """
        present = Counter[str]() if self.state is State.LEFT else self.references
        return present + Counter([mount_id])

    def references_without(self, mount_id: str) -> Counter[str]:
        """Return the references after an Unmount of *mount_id*; the same if it has none."""
        return self.references - Counter([mount_id])

    def _dead_with(self, mount_id: str) -> Counter[str]:
        """Return the dead references after one more Mount of *mount_id*.

        If the id has a reference, its container goes on, and this is a `docker cp`. If the id has
        only an older dead reference, the engine was killed and has started the container again.
        """
        counted = self.references[mount_id] and self.state is not State.LEFT
        return Counter(self.dead) if counted else self.dead - Counter([mount_id])

    def _dead_without(self, mount_id: str) -> Counter[str]:
        """Return the dead references after an Unmount of *mount_id*.

        If the id has several references, the engine's Unmount is for the newest one.
        """
        if not self.references[mount_id]:
            return self.dead - Counter([mount_id])
        left = self.references_without(mount_id)[mount_id]
        return self.dead - Counter({mount_id: max(0, self.dead[mount_id] - left)})

"""Mounts without Docker, as the commands show them; no I/O."""

import os
from collections.abc import Sequence

import msgspec

from passthrough.linux.mountinfo import MountEntry
from passthrough.options.table import as_text
from passthrough.standalone.making import Wanted


class Mounted(msgspec.Struct, frozen=True, kw_only=True):
    """A mount that processes serve."""

    source: str
    mountpoint: str
    options: dict[str, str]
    """Those in force."""
    notes: Sequence[str]


class Unmounted(msgspec.Struct, frozen=True, kw_only=True):
    """A mount that was there."""

    source: str
    mountpoint: str


def mounted(wanted: Wanted) -> Mounted:
    """Return the mount that is made as *wanted*."""
    return Mounted(
        source=wanted.source,
        mountpoint=wanted.mountpoint,
        options=as_text(wanted.options),
        notes=[str(note) for note in wanted.options.notes],
    )


def unmounted(mount: MountEntry) -> Unmounted:
    """Return the mount that has been unmounted."""
    return Unmounted(source=os.fsdecode(mount.source), mountpoint=os.fsdecode(mount.target))

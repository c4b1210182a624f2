"""The directory of a volume on the host: whose it is."""

import grp
import os
import pwd
import stat
from contextlib import suppress
from typing import Final

import msgspec

from plugin.children import Call, Failed, made

LOOK_S: Final = 1.0
"""For a directory on a file server that does not answer, or a slow directory of users."""


class Directory(msgspec.Struct, frozen=True, kw_only=True):
    """Owner and mode of a directory."""

    uid: int
    gid: int
    user: str
    """The user's name on this host; empty if it has none."""
    group: str
    mode: str
    """In octal digits, such as 0755."""

    def __str__(self) -> str:
        """Return the owner as chown(1) takes it, with the names."""
        names = f" ({self.user or self.uid}:{self.group or self.gid})"
        known = names if self.user or self.group else ""
        return f"{self.uid}:{self.gid}{known}, mode {self.mode}"


def look_at(path: str) -> Directory | None:
    """Return whose directory *path* is; None if it does not exist, or does not answer in time."""
    if not os.path.isabs(path):  # the plugin does not know its path on the host
        return None
    try:
        return made(Call(lambda: _looked_at(path), Directory, LOOK_S))
    except Failed:
        return None


def _looked_at(path: str) -> Directory:
    found = os.stat(path)
    user = group = ""
    with suppress(KeyError):
        user = pwd.getpwuid(found.st_uid).pw_name
    with suppress(KeyError):
        group = grp.getgrgid(found.st_gid).gr_name
    mode = f"{stat.S_IMODE(found.st_mode):04o}"
    return Directory(uid=found.st_uid, gid=found.st_gid, user=user, group=group, mode=mode)

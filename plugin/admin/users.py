"""Looks up names of users and groups of the host, for the options that are numbers of the host.

A volume's record has numbers: a name is looked up once, when the volume is created. Only the host's
files /etc/passwd and /etc/group count, also if the host asks a directory service as well.

The functions that read a file block.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from passthrough.linux import syscalls
from passthrough.options.table import OptionError
from passthrough.options.vocabulary import canonical, is_name
from plugin.errors import InvalidOption

PASSWD: Final = "/etc/passwd"  # noqa: S105 - no password
GROUP: Final = "/etc/group"
# Of a line of passwd(5) and group(5), and the user's group of the former.
_NAME, _NUMBER, _GROUP_NUMBER = 0, 2, 3
_KIND: Final = {PASSWD: "user", GROUP: "group"}
# A file of this size has 100,000 users; a longer one is not read to its end.
_LONGEST: Final = 1 << 23


class HostUsers(NamedTuple):
    """The users and groups of the host, as far as the plugin sees the host."""

    root: Path
    """The path at which the plugin sees *directory*."""
    directory: Path
    """The directory of the host that the plugin sees."""

    def numbered(self, given: Mapping[str, str]) -> Mapping[str, str]:
        """Return the options *given* with numbers in place of names of users and groups.

        Raises:
            InvalidOption: the host has no such user or group, or its files cannot be read.
        """
        try:
            return {written: self._number(written, text) for written, text in given.items()}
        except OptionError as error:
            raise InvalidOption(str(error)) from error

    def _number(self, written: str, text: str) -> str:
        if not _has_name(written, text):
            return text
        try:
            return _NUMBERS[canonical(written)](self, text.strip())
        except LookupError as error:
            reason, accepted = str(error), "a number, or a name that the host has"
            raise OptionError(written, text, accepted, reason) from error

    def user(self, text: str) -> str:
        """Return the number of a user.

        Raises:
            LookupError: says which name is not known.
        """
        return self._line(PASSWD, text)[_NUMBER]

    def group(self, text: str) -> str:
        """Return the number of a group.

        Raises:
            LookupError: says which name is not known.
        """
        return self._line(GROUP, text)[_NUMBER]

    def owner(self, text: str) -> str:
        """Return `user:group` in numbers; without a group in *text*, that of the user.

        Raises:
            LookupError: says which name is not known.
        """
        user, colon, group = text.partition(":")
        if not colon:
            fields = self._line(PASSWD, user)
            return ":".join(fields[_NUMBER : _GROUP_NUMBER + 1])
        uid = self.user(user) if is_name(user) else user
        return f"{uid}:{self.group(group) if is_name(group) else group}"

    def _line(self, file: str, name: str) -> list[str]:
        """Return the line of *name* in a file of the form of passwd(5) or group(5)."""
        for line in self._read(file).split("\n"):
            fields = line.split(":")
            if fields[_NAME] == name and len(fields) > _NUMBER and fields[_NUMBER].isdigit():
                return fields
        raise LookupError(f"{name!r} is no {_KIND[file]} in the host's {file}")

    def _read(self, file: str) -> str:
        if self.directory != Path("/"):
            reason = f"names are in the host's {file}, and the plugin sees {self.directory} alone"
            raise LookupError(reason)
        try:
            with os.fdopen(self._open(file), "rb") as stream:
                return os.fsdecode(stream.read(_LONGEST))
        except OSError as error:
            raise LookupError(f"the host's {file} cannot be read: {error.strerror}") from error

    def _open(self, file: str) -> int:
        """Open *file* in the host's tree; absolute links lead into the same tree."""
        root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
            return syscalls.openat2(root, os.fsencode(file), os.O_RDONLY | os.O_NONBLOCK, resolve)
        finally:
            os.close(root)


_NUMBERS: Final[Mapping[str, Callable[[HostUsers, str], str]]] = {
    "uid": HostUsers.user,
    "gid": HostUsers.group,
    "anon_uid": HostUsers.user,
    "anon_gid": HostUsers.group,
    "owner": HostUsers.owner,
}


def named(given: Mapping[str, str]) -> dict[str, str]:
    """Return those of the options *given* that have a name to look up."""
    return {written: text for written, text in given.items() if _has_name(written, text)}


def _has_name(written: str, text: str) -> bool:
    return canonical(written) in _NUMBERS and any(map(is_name, text.strip().split(":")))

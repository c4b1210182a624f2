"""The plugin's refusals, with the HTTP status of each; no I/O, no import from this package.

Every message of a PluginError is for a user: lower case, no full stop, the user's value quoted.
Only `plugin.api.server` turns refusals into replies.
"""
# ruff: noqa: N818 - the name of a refusal is its reason, as in `raise NoSuchVolume`

from typing import ClassVar

# The user recognises a value by its first 200 characters. dockerd passes on names and options of
# any length, up to megabytes.
QUOTED_LIMIT = 200


def quoted(value: str) -> str:
    """Return *value* for a message: quoted, escaped, and cut after QUOTED_LIMIT characters."""
    if len(value) <= QUOTED_LIMIT:
        return repr(value)
    return f"{value[:QUOTED_LIMIT]!r}... ({len(value)} characters)"


def escaped(message: str) -> str:
    """Return *message* with bytes that are no UTF-8, such as in names of files, escaped.

    JSON cannot hold them, and dockerd forgets a volume if its Get fails.
    """
    return message.encode(errors="backslashreplace").decode()


def printable(text: str) -> str:
    """Return *text* with its unprintable characters escaped, newlines among them.

    Text of users must neither forge a line nor command a terminal.
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class PluginError(Exception):
    """Base of all refusals; any other exception that reaches the server is a bug."""

    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(escaped(message))


class BadRequest(PluginError):
    """The request is malformed, or the name of the volume is not accepted."""

    status = 400


class RequestTimeout(PluginError):
    """The body of the request did not arrive in time."""

    status = 408


class RequestTooLarge(PluginError):
    """The body of the request is longer than BODY_LIMIT_BYTES of `plugin.api.connection`."""

    status = 413


class HeadTooLarge(PluginError):
    """The head of the request is longer than HEAD_LIMIT_BYTES of `plugin.api.connection`."""

    status = 431


class NoSuchPath(PluginError):
    """The socket has no such path."""

    status = 404


class NoSuchMethod(PluginError):
    """The path has other methods."""

    status = 405


class InvalidOption(PluginError):
    """A volume option is unknown, has an unacceptable value, or contradicts another."""

    status = 400


class NoSuchVolume(PluginError):
    """The request names a volume that the registry does not hold."""

    status = 404

    def __init__(self, name: str) -> None:
        super().__init__(f"no such volume: {quoted(name)}")


class VolumeExists(PluginError):
    """Create names an existing volume with other options."""

    status = 409


class VolumeInUse(PluginError):
    """The volume is in use, or its directory contains a mount point."""

    status = 409


class VolumeBusy(PluginError):
    """Another request for the volume has not finished in time; nothing has been done."""

    status = 503


class MountFailed(PluginError):
    """A Mount failed and is undone, or a volume could not be unmounted and stays mounted."""


class StorageFailed(PluginError):
    """The directory of a volume without a source cannot be made, opened or moved."""


class RegistryFailed(PluginError):
    """A change could not be written; disk and memory are as before."""


class CannotStart(PluginError):
    """The plugin must not start, because of its data, its settings or the machine."""


class InvalidSetting(CannotStart):
    """A setting in the environment has a value that is not accepted."""

"""What the plugin refuses, and the HTTP status of each refusal; no I/O, no import of ours.

Every message is a sentence for a person: lower case, no full stop, the user's own value quoted.
`plugin.api.server` is the one place that turns these into replies.
"""
# ruff: noqa: N818 - a refusal is named after what is refused, as it reads in `raise NoSuchVolume`

from typing import ClassVar

# A value is quoted so that the user recognises it; dockerd passes names and options of any
# length on to plugins, and nobody reads a message of a megabyte.
QUOTED_LIMIT = 200


def quoted(value: str) -> str:
    """*value* as it stands in a message: quoted, escaped, and cut when it is absurdly long."""
    if len(value) <= QUOTED_LIMIT:
        return repr(value)
    return f"{value[:QUOTED_LIMIT]!r}... ({len(value)} characters)"


def escaped(message: str) -> str:
    """Return *message* with the bytes that are no text, as in names of files, escaped.

    JSON has no place for them, and dockerd forgets a volume whose Get fails.
    """
    return message.encode(errors="backslashreplace").decode()


class PluginError(Exception):
    """Base of all that the plugin refuses on purpose; anything else that is raised is a bug."""

    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(escaped(message))


class BadRequest(PluginError):
    """The request itself cannot be understood or served, whatever the state of the plugin."""

    status = 400


class RequestTimeout(PluginError):
    """The body of the request did not arrive in time."""

    status = 408


class RequestTooLarge(PluginError):
    """The body of the request is longer than any sensible request."""

    status = 413


class InvalidOption(PluginError):
    """A volume option is unknown, has an unacceptable value, or contradicts another."""

    status = 400


class NoSuchVolume(PluginError):
    """The request names a volume that the registry does not hold."""

    status = 404

    def __init__(self, name: str) -> None:
        super().__init__(f"no such volume: {quoted(name)}")


class VolumeExists(PluginError):
    """Create asks for an existing volume with other options than it has."""

    status = 409


class VolumeInUse(PluginError):
    """The volume is mounted, so that what was asked for would pull it from under its users."""

    status = 409


class VolumeBusy(PluginError):
    """Another request for the volume has not come to an end in time; nothing has been done."""

    status = 503


class MountFailed(PluginError):
    """A volume could not be mounted or unmounted; whatever had been set up is undone again."""


class StorageFailed(PluginError):
    """The directory of a volume that the plugin made itself is not as it must be."""


class RegistryFailed(PluginError):
    """A change could not be written; what is on disk and in memory is as before."""


class CannotStart(PluginError):
    """The plugin must not start: something about its machine or its data is not as it must be."""


class InvalidSetting(CannotStart):
    """A setting in the environment has a value that is not accepted."""

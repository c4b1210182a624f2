"""The arguments and results of `passfs install` and `uninstall`, the display, and the error."""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
PLUGIN_NAME = re.compile(
    rf"(?:[\w.-]+(?::\d+)?/)?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?", re.ASCII
)
"""The grammar of an image reference, in the Go module distribution/reference."""

TREE = Path(__file__).resolve().parents[2]
"""The source tree of this module, if it runs from one."""


class InstallationError(Exception):
    """An error that the user of the command can act on; str() is the whole sentence."""


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `passfs install` and `passfs uninstall`."""

    name: str = "passfs"
    tree: Path = TREE
    settings: Mapping[str, str] = {}
    """Field of `Settings` -> text. A setting that is left out keeps its value."""
    ca_bundle: str | None = None
    """PEM file. None means the bundle of the last install; empty means no bundle."""
    force: bool = False


class Done(StrEnum):
    """The work of a `passfs install`."""

    CREATED = "created"
    REPLACED = "replaced"
    """By a new build."""
    CONFIGURED = "configured"
    ENABLED = "enabled"
    NOTHING = "nothing"


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin that is installed and enabled."""

    plugin: str
    done: Done
    settings: Mapping[str, str]
    """Those in force, as `docker plugin set` names them."""


class Uninstalled(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin that has been removed."""

    plugin: str
    data_dir: str
    """It still has the registry, and the volumes without a source."""


class Progress(Protocol):
    """The display of an install."""

    def step(self, title: str) -> None:
        """Begin the next step."""

    def line(self, text: str) -> None:
        """Show a line of the step."""

    def amount(self, done: int, total: int) -> None:
        """Show that *done* of about *total* bytes are done."""


def check_name(name: str) -> None:
    """Refuse a name that engines do not accept for a plugin: they refuse it after the build.

    Raises:
        InstallationError: says what is accepted.
    """
    if not PLUGIN_NAME.fullmatch(name):
        raise InstallationError(
            f"--name '{name}' is not accepted; expected lower-case letters and digits, with single "
            "'.', '_' or '-' between them, such as passfs."
        )

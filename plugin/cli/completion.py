"""The completion of arguments in a shell: it waits for nothing, and reports no error."""

import re
from typing import Final

import typer

from plugin.admin.settings import SETTINGS

# The scripts of shells split and evaluate an answer. Only volumes of an older passfs have others.
_HARMLESS: Final = re.compile(r"[\w./-]+", re.ASCII)

ANSWER_S: Final = 1.0
"""A shell shows nothing meanwhile. The plugin answers in milliseconds."""


def volumes(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of volumes that begin with *incomplete*; none if no plugin answers."""
    from plugin.commands import inquiry  # noqa: PLC0415
    from plugin.commands.asking import CommandError, Plugin  # noqa: PLC0415

    plugin = Plugin(context.params.get("data_dir") or SETTINGS["data_dir"].default)
    try:
        names = inquiry.names(plugin, ANSWER_S)
    except CommandError:
        return []
    return [name for name in names if name.startswith(incomplete) and _HARMLESS.fullmatch(name)]


def mount_options(incomplete: str) -> list[str]:
    """Return the words that may stand in `-o` in place of its last word, *incomplete*."""
    from passthrough.options.parsing import OF_A_SOURCE  # noqa: PLC0415
    from passthrough.options.table import OPTIONS  # noqa: PLC0415
    from passthrough.options.vocabulary import ALIASES  # noqa: PLC0415

    before, comma, word = incomplete.rpartition(",")
    words = sorted({*(f"{name}=" for name in OPTIONS if name not in OF_A_SOURCE), *ALIASES})
    return [f"{before}{comma}{each}" for each in words if each.startswith(word)]

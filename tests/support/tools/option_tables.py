"""The tables of options in README.md and docs/options.md, from the table in the code.

`python -m tests.support.tools.option_tables` writes each option's default, accepted values and
meaning into its row of the README, and its default into its row of docs/options.md. The order of
rows, and the table that a row is in, are the documents' own: begin a row with the new option's name
(``| `name` |``), and run the command.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from passthrough.options.table import OPTIONS, Requested, as_text
from plugin.volume_options import SOURCE, SOURCE_ACCEPTED
from tests.support.tools.generated import REPOSITORY

README = REPOSITORY / "README.md"
DETAILS = REPOSITORY / "docs" / "options.md"
ROW = re.compile(r"^\| `(?P<name>\w+)` \|.*$", re.MULTILINE)
NAMES = (SOURCE, *OPTIONS)

# Of the one option that is the plugin's own.
_SOURCE_DEFAULT = "a directory of its own"
_SOURCE_MEANING = (
    "the directory to serve. It must be no symbolic link and lie in no volume, and neither contain"
    " nor be part of the plugin's own directories"
)


def defaults() -> Mapping[str, str]:
    """Return the cell for the default of each option."""
    given = as_text(Requested())
    left_open = {name for name in OPTIONS if getattr(Requested(), name) is None}
    shown = {name: text if name in left_open else f"`{text}`" for name, text in given.items()}
    return {SOURCE: _SOURCE_DEFAULT, **shown}


def in_readme(name: str, _row: str = "") -> str:
    """Return the row of *name* in the README."""
    if name == SOURCE:
        accepts, meaning = SOURCE_ACCEPTED, _SOURCE_MEANING
    else:
        accepts, meaning = OPTIONS[name].accepts, OPTIONS[name].meaning
    return f"| `{name}` | {defaults()[name]} | {accepts} | {meaning} |"


def in_details(name: str, row: str) -> str:
    """Return *row* of docs/options.md with the default of *name*."""
    details = row.removesuffix(" |").split(" | ", 2)[2:]
    return " | ".join([f"| `{name}`", defaults()[name], *(details or ["-"])]) + " |"


def tables(document: Path) -> list[list[str]]:
    """Return the options that each table of options in *document* has rows for."""
    blocks = re.split(r"\n(?!\|)", document.read_text())
    found = [[m["name"] for m in ROW.finditer(block) if m["name"] in NAMES] for block in blocks]
    return [names for names in found if names]


def updated(document: Path, row_of: Callable[[str, str], str]) -> str:
    """Return the text of *document* with each option's row as *row_of* makes it."""
    return ROW.sub(
        lambda match: row_of(match["name"], match[0]) if match["name"] in NAMES else match[0],
        document.read_text(),
    )


if __name__ == "__main__":
    README.write_text(updated(README, in_readme))
    DETAILS.write_text(updated(DETAILS, in_details))

"""Writes files from the table of settings in plugin/admin/settings.py.

`python -m tests.support.tools.settings` writes the `env` section of config.json and the table in
docs/install.md.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from plugin.admin.settings import SETTINGS, Setting
from tests.support.tools.generated import REPOSITORY, Section

COMMAND = "python -m tests.support.tools.settings"
MANIFEST = REPOSITORY / "config.json"
DOCUMENT = REPOSITORY / "docs" / "install.md"

ENVIRONMENT = Section(MANIFEST, '  "env": [\n', "\n  ],\n")
TABLE = Section(
    DOCUMENT,
    "| Setting | `passfs install` | Managed plugin | Service | Meaning |\n|---|---|---|---|---|\n",
    "\n\n",
)


def environment() -> str:
    """Return the entries of `env`: the settings, then the variables of the interpreter."""
    entries = [_entry(setting) for setting in SETTINGS.values() if setting.in_plugin]
    entries += [
        entry
        for entry in json.loads(MANIFEST.read_text())["env"]
        if not entry["name"].startswith("PASSFS_")
    ]
    return ",\n".join(_layout(entry) for entry in entries)


def _entry(setting: Setting) -> dict[str, Any]:
    empty = f"; empty: {setting.if_empty}" if setting.if_empty else ""
    entry = {
        "name": setting.variable,
        "description": setting.meaning + empty,
        "value": setting.fixed or setting.default,
    }
    return entry if setting.fixed else entry | {"settable": ["value"]}


def _layout(entry: Mapping[str, Any]) -> str:
    lines = [f"      {json.dumps(key)}: {json.dumps(value)}" for key, value in entry.items()]
    return "    {\n" + ",\n".join(lines) + "\n    }"


def table() -> str:
    """Return the rows of the table of settings."""
    return "\n".join(f"| {' | '.join(_cells(setting))} |" for setting in SETTINGS.values())


def _cells(setting: Setting) -> tuple[str, ...]:
    flag = setting.flag
    default = f"`{setting.default}`" if setting.default else setting.if_empty
    cells = (
        f"`{setting.variable}`",
        f"`{flag.name} {flag.metavar}`" + ", repeatable" * bool(flag.separator) if flag else "",
        "" if not setting.in_plugin else f"`{setting.fixed}`, fixed" if setting.fixed else default,
        default,
        setting.meaning,
    )
    return tuple(re.sub(r"`?(PASSFS_\w+)`?", r"`\1`", cell) for cell in cells)


if __name__ == "__main__":
    ENVIRONMENT.write(environment())
    TABLE.write(table())

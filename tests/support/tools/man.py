"""The manual page packaging/passfs.1: commands, options of volumes and settings, from the code.

`python -m tests.support.tools.man` writes the page.
"""

import re
from collections.abc import Iterator
from typing import Any

import typer

from passthrough.options.table import OPTIONS
from plugin.__main__ import app
from plugin.admin.settings import SETTINGS
from plugin.volume_options import SOURCE
from tests.support.tools.generated import REPOSITORY
from tests.support.tools.option_tables import defaults, in_readme

PAGE = REPOSITORY / "packaging" / "passfs.1"
_HEAD = """\
.\\" python -m tests.support.tools.man writes this file.
.TH PASSFS 1 "" passfs "passfs"
.SH NAME
passfs, mount.fuse.passfs \\- Docker volumes that pass a host directory through FUSE
.SH SYNOPSIS
.B passfs
.I COMMAND
[OPTIONS]
.br
.B docker volume create \\-d passfs
[\\fB\\-o\\fR \\fINAME\\fR=\\fIVALUE\\fR]...
.I VOLUME
.SH DESCRIPTION
passfs is a Docker volume plugin. Each volume is a FUSE file system that mirrors one directory of
the host. README.md and docs/ in the source tree say more.
"""
_HELPER = """\
.SH MOUNT HELPER
mount(8) calls mount.fuse.passfs, if it is in /sbin, for the type fuse.passfs. A line of fstab(5):
.PP
.nf
/srv/app /mnt/app fuse.passfs owner=0:0,cache=auto,nofail 0 0
.fi
.PP
The options are those of volumes, without source, subpath and create. Words for mount(8) and systemd
are ignored. mount(8) takes a bare owner for a word of its own: write owner=0:0.
"""
_TAIL = """\
.SH SEE ALSO
.BR docker\\-volume\\-create (1),
.BR mount (8),
.BR fuse (4)
"""


def page() -> str:
    """Return the manual page in the format of man(7)."""
    return "".join((_HEAD, *_commands(), _HELPER, *_options(), *_settings(), _TAIL))


def _commands() -> Iterator[str]:
    yield ".SH COMMANDS\n"
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        if command.hidden:  # another name of a command
            continue
        places = (p.metavar or p.name.upper() for p in command.params if p.opts[0][0] != "-")
        yield f".SS passfs {' '.join([name, *map(_plain, places)])}\n{_plain(command.help)}\n"
        for option in command.params:
            if option.opts[0].startswith("-"):
                words = ", ".join(option.opts) + (f" {option.metavar}" if option.metavar else "")
                yield _entry(words, option.help)


def _options() -> Iterator[str]:
    yield ".SH OPTIONS OF VOLUMES\n"
    yield "In names, \\- and _ are alike. A bare name means true.\n"
    for name in (SOURCE, *OPTIONS):
        _, _, accepts, meaning = in_readme(name).strip("| ").split(" | ")
        yield _entry(name, f"{meaning}. Accepts: {accepts}. Default: {defaults()[name]}.")


def _settings() -> Iterator[str]:
    yield ".SH ENVIRONMENT\nSettings of passfs serve. A managed plugin has most of them.\n"
    for setting in SETTINGS.values():
        default = setting.default or setting.if_empty
        yield _entry(setting.variable, f"{setting.meaning}. Default: {default}.")


def _entry(words: str, text: str) -> str:
    return f".TP\n.B {_plain(words)}\n{_plain(text)}\n"


def _plain(text: str) -> str:
    """Return *text* without Markdown, and with nothing that roff takes for a request."""
    text = re.sub(r"\n\s*\n", "\n.PP\n", text.replace("`", "").replace("\\", "\\e"))
    return text.replace("-", "\\-").replace("'", "\\(aq")


if __name__ == "__main__":
    PAGE.write_text(page())

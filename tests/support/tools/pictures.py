"""The pictures of commands in docs/pictures: a terminal's output, as SVG without remote fonts.

`python -m tests.support.tools.pictures` writes them anew, as root.
"""

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from rich.ansi import AnsiDecoder
from rich.console import Console

from passthrough.linux import syscalls
from tests.support.tools.commands import processes_of
from tests.support.tools.generated import REPOSITORY
from tests.support.tools.mounts import MS_SHARED, mounted_on
from tests.support.tools.namespaces import leave_machine
from tests.support.tools.processes import wait_until
from tests.support.tools.service import Service, started

PICTURES: Final = REPOSITORY / "docs" / "pictures"
PLACE: Final = Path("/srv")
"""The directory of the service and its sources; a file system of its own covers it meanwhile."""
COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "ls": ("ls",),
    "status": ("status", "db"),
    "top": ("top", "--count", "1"),
    "doctor": ("doctor",),
}
END_OF_STATUS: Final = "Options in force"
"""The picture of status ends above this title: two long tables follow."""

_ROWS, _COLUMNS = 40, 112
_CELL: Final = 12.2
"""The width of a character in the pictures of rich."""
_TEXT: Final = "{http://www.w3.org/2000/svg}text"
_HOME, _LEAVE = "\x1b[H", "\x1b[?1049l"  # how a program begins a frame, and gives the screen back
_SVG: Final = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
    font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace;
    font-size: {char_height}px;
    line-height: {line_height}px;
}}
.{unique_id}-title {{ font: bold 18px sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix" xml:space="preserve">
{matrix}
</g>
</g>
</svg>
"""


def path_of(name: str) -> Path:
    """Return the file of the picture of the command *name*."""
    return PICTURES / f"{name}.svg"


def pictures() -> dict[str, str]:
    """Run the commands beside a plugin with four volumes; return their pictures as SVG."""
    with _plugin() as service, _load(service, "db", 0.001), _load(service, "web", 0.02):
        return {name: _drawn(name, _received(*words)) for name, words in COMMANDS.items()}


def lines(svg: str) -> list[str]:
    """Return the lines of text that a picture shows."""
    found: dict[float, str] = {}
    for text in ET.fromstring(svg).iter(_TEXT):  # noqa: S314 - a file of this repository
        if "clip-path" in text.keys():  # noqa: SIM118 - of an Element; the title has none
            row, column = float(text.attrib["y"]), round(float(text.attrib["x"]) / _CELL)
            words = (text.text or "").replace("\xa0", " ")
            found[row] = found.get(row, "").ljust(column) + words
    return [found[row].rstrip() for row in sorted(found)]


def shape(name: str, svg: str) -> list[list[str]]:
    """Return what each run has in common in the picture of the command *name*.

    - ls: all cells, because its volumes are always the same;
    - status: the titles and the names of columns: its values and its operations differ;
    - top: the names of columns and of volumes: its numbers differ, and with them the order;
    - doctor: the names of columns and of checks: the machine decides the findings.
    """
    return _SHAPES[name]([_cells(line) for line in lines(svg)])


def _all(table: list[list[str]]) -> list[list[str]]:
    return table


def _heads(table: list[list[str]]) -> list[list[str]]:
    rules = [number for number, cells in enumerate(table) if _is_rule(cells)]
    return [cells for rule in rules for cells in table[max(0, rule - 3) : rule] if cells != [""]]


def _first_cells(table: list[list[str]]) -> list[list[str]]:
    _, head, *rows = table
    return [head, *sorted(cells[:1] for cells in rows)]


def _checks(table: list[list[str]]) -> list[list[str]]:
    head, _, *rows = table[: table.index([""])]
    return [head, *(cells[:1] for cells in rows if len(cells) == len(head))]


_SHAPES: Final[Mapping[str, Callable[[list[list[str]]], list[list[str]]]]] = {
    "ls": _all,
    "status": _heads,
    "top": _first_cells,
    "doctor": _checks,
}


def _cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def _is_rule(cells: list[str]) -> bool:
    return {*cells[0]} == {"─"}


def _drawn(name: str, output: str) -> str:
    """Return the picture of a terminal that has received *output*."""
    frame = output.rpartition(_HOME)[2].partition(_LEAVE)[0]
    shown = [*AnsiDecoder().decode(frame)]
    for line in shown:
        line.rstrip()
    while shown and not shown[-1].plain:
        shown.pop()
    while shown and not shown[0].plain:
        shown.pop(0)
    titles = [line.plain for line in shown]
    if END_OF_STATUS in titles:
        del shown[titles.index(END_OF_STATUS) :]
    console = Console(record=True, file=io.StringIO(), width=_COLUMNS, force_terminal=True)
    for line in shown:
        console.print(line, highlight=False)
    title = " ".join(("passfs", *COMMANDS[name]))
    drawn = console.export_svg(title=title, code_format=_SVG, unique_id=name)
    return "\n".join(line.strip() for line in drawn.splitlines() if line.strip()) + "\n"


def _received(*arguments: str) -> str:
    """Return what a terminal receives from a command."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (_ROWS, _COLUMNS))
    left_out = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"}
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "plugin", *arguments, "--data-dir", str(PLACE / "data")],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env=environment | {"TERM": "xterm-256color"},
            cwd=REPOSITORY,
        )
        os.close(theirs)
        output = b""
        with contextlib.suppress(OSError):  # EIO: the command has closed the terminal
            while part := terminal.read(4096):
                output += part
        assert process.wait(60) in {0, 1}  # 1: doctor reports an error
    return output.decode().replace("\r\n", "\n")


@contextlib.contextmanager
def _plugin() -> Iterator[Service]:
    """Run a plugin: volumes db and web are mounted, cache is idle, the source of old is missing."""
    with mounted_on(PLACE, "tmpfs", "size=1g,nr_inodes=64k"):
        syscalls.mount(b"none", os.fsencode(PLACE), b"none", MS_SHARED, b"")
        with started(PLACE) as service, contextlib.ExitStack() as mounts:
            service.call("VolumeDriver.Create", Name="cache")
            for name, source in (("db", "app"), ("web", "www"), ("old", "old")):
                (PLACE / source).mkdir()
                options = {"source": str(PLACE / source)}
                service.call("VolumeDriver.Create", Name=name, Opts=options)
            (PLACE / "old").rmdir()
            assert (
                "does not exist" in service.call("VolumeDriver.Mount", Name="old", ID="c1")["Err"]
            )
            for name in ("db", "web"):
                mounts.callback(service.call, "VolumeDriver.Unmount", Name=name, ID="c1")
                assert "Mountpoint" in service.call("VolumeDriver.Mount", Name=name, ID="c1")
                wait_until(partial(_has_guards, service, name))
            yield service


def _has_guards(service: Service, volume: str) -> bool:
    return len(processes_of(service, volume)) == 3


@contextlib.contextmanager
def _load(service: Service, volume: str, pause_s: float) -> Iterator[None]:
    """Have a thread write and read files of *volume* during the block."""
    directory, is_over = service.directory / "mounts" / volume, threading.Event()

    def work() -> None:
        while not is_over.wait(pause_s):
            file = directory / "new"
            file.write_bytes(bytes(10_000))
            file.rename(directory / "file")
            (directory / "file").read_bytes()
            (directory / "absent").exists()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


if __name__ == "__main__":
    leave_machine()
    PICTURES.mkdir(exist_ok=True)
    for picture, text in pictures().items():
        path_of(picture).write_text(text)

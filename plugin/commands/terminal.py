"""Shows a document: with rich on a terminal, else as plain text, and anything as JSON."""

import io
import json
import sys
from collections.abc import Iterable

import msgspec

from plugin.commands.document import Block, Pairs, plain, shown
from plugin.errors import printable


def show(blocks: Iterable[Block]) -> None:
    """Print *blocks* on standard output."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of a locale without UTF-8
    if sys.stdout.isatty():
        _show_by_rich(blocks)
    else:
        for line in plain(blocks):
            sys.stdout.write(f"{line}\n")


def show_line(text: str) -> None:
    """Print a line of a stream at once."""
    sys.stdout.write(f"{printable(text)}\n")
    sys.stdout.flush()


def show_json_line(value: object) -> None:
    """Print *value* as JSON on one line, at once."""
    show_line(json.dumps(msgspec.to_builtins(value)))


def show_json(value: object) -> None:
    """Print *value* as JSON, in ASCII: no control character reaches the terminal."""
    sys.stdout.write(f"{json.dumps(msgspec.to_builtins(value), indent=2)}\n")
    sys.stdout.flush()  # `passfs mount --foreground` goes on


def _show_by_rich(blocks: Iterable[Block]) -> None:
    # Imported here, because plain text needs none of it.
    from rich import box  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False, markup=False)
    for block in blocks:
        title = Text(shown(block.title), style="bold") if block.title else None
        if isinstance(block, Pairs):
            table = Table(title=title, title_justify="left", box=None, show_header=False)
            table.add_column(style="dim", no_wrap=True)
            table.add_column(overflow="fold")
        else:
            table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
            for column in block.columns:
                table.add_column(Text(column), overflow="fold")
        for row in block.rows:
            table.add_row(*(Text(shown(cell)) for cell in row))
        console.print(table)

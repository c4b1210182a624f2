"""A document of pairs and tables, and its plain text; no I/O."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from plugin.errors import printable

GAP = "  "


class Pairs(NamedTuple):
    """Names with values."""

    title: str
    rows: Sequence[tuple[str, str]]


class Table(NamedTuple):
    """Rows of cells below a header."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


Block: TypeAlias = Pairs | Table


def shown(cell: str) -> str:
    """Return *cell* on one line, without control characters; an empty one has a dash."""
    return printable(cell) or "-"


def plain(blocks: Iterable[Block]) -> Iterator[str]:
    """Yield the lines of *blocks*; columns are aligned, and no cell is cut off."""
    for number, block in enumerate(blocks):
        if number:
            yield ""
        if block.title:
            yield f"{shown(block.title)}:"
        header = [] if isinstance(block, Pairs) or not block.columns else [block.columns]
        rows = [*header, *block.rows]
        yield from _aligned([[shown(cell) for cell in row] for row in rows])


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield GAP.join(map(str.ljust, row, widths)).rstrip()

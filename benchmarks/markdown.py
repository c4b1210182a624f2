"""The results as a page of Markdown, for docs/benchmarks/."""

import textwrap

from benchmarks.report import Report
from benchmarks.table import Table, summary, tables
from benchmarks.verdict import sentences

_WIDTH = 100


def page(report: Report) -> str:
    """Return the page: a summary of the run, the results in words, then each table."""
    words = [f"- {sentence}" for sentence in sentences(report)]
    parts = [f"{_filled(summary(report))}\n", "\n".join(map(_filled, words)) + "\n"]
    return "\n".join([*parts[: 1 + bool(words)], *map(_table, tables(report))])


def _filled(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(
        text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _table(table: Table) -> str:
    rules = ["---", *("--:" for _ in table.heads[1:])]
    rows = [
        [f"**{cell}**" for cell in row] if index in table.bold else row
        for index, row in enumerate(table.rows)
    ]
    drawn = "".join(f"| {' | '.join(row)} |\n" for row in (table.heads, rules, *rows))
    note = _filled(f"{table.note[0].upper()}{table.note[1:]}.")
    return f"### {table.title}\n\n{note}\n\n{drawn}"

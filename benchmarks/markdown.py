"""The results as a page of Markdown, for docs/benchmarks/."""

import textwrap

from benchmarks.report import Report
from benchmarks.table import Table, summary, tables

_WIDTH = 100


def page(report: Report) -> str:
    """Return the page: a summary of the run, then each table."""
    facts = textwrap.fill(summary(report), _WIDTH, break_long_words=False, break_on_hyphens=False)
    parts = [f"{facts}\n", *map(_table, tables(report))]
    return "\n".join(parts)


def _table(table: Table) -> str:
    rules = ["---", *("--:" for _ in table.heads[1:])]
    rows = [
        [f"**{cell}**" for cell in row] if index in table.bold else row
        for index, row in enumerate(table.rows)
    ]
    drawn = "".join(f"| {' | '.join(row)} |\n" for row in (table.heads, rules, *rows))
    return f"### {table.title}\n\n{table.note[0].upper()}{table.note[1:]}.\n\n{drawn}"

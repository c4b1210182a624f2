"""The known faults, from the marks of the tests that show them.

`python -m tests.support.tools.faults` writes the table into docs/faults.md.
"""

from collections.abc import Iterator
from typing import NamedTuple

from tests.support.tools.generated import REPOSITORY, Section, marks

MARK = "fault"
TABLE = Section(
    REPOSITORY / "docs" / "faults.md",
    "| feature | known fault | sessions |\n|---|---|---|\n",
    " -->\n",
)

FEATURES: tuple[str, ...] = ()
"""Features with known faults; each mark names one of them."""


class Fault(NamedTuple):
    """The literal arguments of a mark."""

    feature: str
    seen: str
    columns: tuple[str, ...]
    """The columns of the battery that show the fault; empty for all mounts."""
    file: str
    """The tests, relative to the repository."""


def faults() -> Iterator[Fault]:
    """Yield each mark in the battery, in the order of files and lines."""
    for path, (feature, seen, *columns) in marks(MARK):
        yield Fault(feature, seen, tuple(columns), str(path.relative_to(REPOSITORY)))


def table() -> str:
    """Return the rows of the table, by feature, and the comment that names the tests.

    Several marks of one fault become one row.
    """
    rows: dict[tuple[str, str], set[str]] = {}
    for fault in sorted(faults(), key=lambda fault: FEATURES.index(fault.feature)):
        sessions = {column.partition("-")[0] for column in fault.columns}
        rows.setdefault(fault[:2], set()).update(sessions or {"kernel", "libfuse"})
    lines = [
        f"| {feature} | {seen} | {', '.join(f'`{session}`' for session in sorted(sessions))} |"
        for (feature, seen), sessions in rows.items()
    ]
    if not lines:
        lines = ["| none | no test shows a fault today | |"]
    files = sorted({fault.file for fault in faults()}) or ["tests/posix/conftest.py"]
    return "\n".join([*lines, f"<!-- shown by: {', '.join(files)}"])


if __name__ == "__main__":
    TABLE.write(table())

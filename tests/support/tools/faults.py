"""The known faults, from the marks of the tests that show them.

`python -m tests.support.tools.faults` writes the table into docs/faults.md.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[3]
DOCUMENT = REPOSITORY / "docs" / "faults.md"
MARK = "pytest.mark.fault"
BEGIN, END = "| feature | known fault | sessions |\n|---|---|---|\n", " -->\n"

FEATURES = (
    "opening a file that has lost its name",
    "changes by path",
    "SEEK_DATA and SEEK_HOLE",
    "stores into shared maps",
    "inode numbers",
    "file handles of the mount",
    "space of files that the host deletes",
    "reserved blocks",
    "memory of open directories",
    "descriptors",
    "seekdir(3)",
    "lock ranges",
    "POSIX ACLs",
)
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
    for path in sorted((REPOSITORY / "tests" / "posix").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == MARK:
                feature, seen, *columns = (ast.literal_eval(argument) for argument in node.args)
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
    files = sorted({fault.file for fault in faults()})
    return "\n".join([*lines, f"<!-- shown by: {', '.join(files)}"])


def documented() -> str:
    """Return the rows in docs/faults.md."""
    return DOCUMENT.read_text().split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table() + END + rest.split(END, 1)[1])

"""Features that libfuse's binding lacks, from the marks of the tests that only `kernel` passes.

`python -m tests.support.tools.lacks` writes the table into docs/sessions.md.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
DOCUMENT = REPOSITORY / "docs" / "sessions.md"
MARK = "libfuse_lacks"
BEGIN, END = "| feature | with `libfuse` users see |\n|---|---|\n", "\n<!-- shown by"


def marks() -> Iterator[tuple[str, str]]:
    """Yield the arguments of each mark in the battery, in the order of files and lines."""
    for path in sorted((REPOSITORY / "tests" / "posix").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == f"pytest.mark.{MARK}":
                feature, seen = (ast.literal_eval(argument) for argument in node.args)
                yield feature, seen


def table() -> str:
    """Return the rows of the table; equal marks become one row."""
    return "\n".join(f"| {feature} | {seen} |" for feature, seen in dict.fromkeys(marks()))


def documented() -> str:
    """Return the rows in docs/sessions.md."""
    return DOCUMENT.read_text().split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table() + END + rest.split(END, 1)[1])

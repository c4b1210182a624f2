"""Features that libfuse's binding lacks, from the marks of the tests that only `kernel` passes.

`python -m tests.support.tools.lacks` writes the table into docs/sessions.md.
"""

from tests.support.tools.generated import REPOSITORY, Section, marks

MARK = "libfuse_lacks"
TABLE = Section(
    REPOSITORY / "docs" / "sessions.md",
    "| feature | with `libfuse` users see |\n|---|---|\n",
    "\n<!-- shown by",
)


def table() -> str:
    """Return the rows of the table; equal marks become one row."""
    rows = dict.fromkeys(tuple(arguments) for _, arguments in marks(MARK))
    return "\n".join(f"| {feature} | {seen} |" for feature, seen in rows)


if __name__ == "__main__":
    TABLE.write(table())

"""The table of the features of INIT in docs/kernels.md, from the table in the code.

`python -m tests.support.tools.features` writes the table.
"""

from passthrough.session.negotiation import FEATURES, REQUIRED
from tests.support.tools.generated import REPOSITORY, Section

TABLE = Section(
    REPOSITORY / "docs" / "kernels.md",
    "| flag | required | purpose, or why it is not used |\n|---|---|---|\n",
    "<!-- shown by",
)


def table() -> str:
    """Return the rows of the table."""
    rows = (
        (f"`{str(feature.flag.name).lower()}`", feature.flag in REQUIRED, feature.reason)
        for feature in FEATURES
    )
    return "".join(
        f"| {flag} | {'yes' if required else ''} | {text} |\n" for flag, required, text in rows
    )


if __name__ == "__main__":
    TABLE.write(table())

"""A paragraph of the documents with a figure or an errno names the test that shows it.

The name stands in a comment after the paragraph or table, on a line of its own that no reader sees:

    <!-- shown by: tests/plugin/mounting/test_keeper.py::test_name, benchmarks/volumes.py -->

docs/performance.md is left out: `python -m benchmarks` measures its figures.
"""

import ast
import errno
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEASURED = "docs/performance.md"
DOCUMENTS = ["README.md"]
DOCUMENTS += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS.remove(MEASURED)
SHOWN = re.compile(r"^<!-- shown by: (.+?) -->$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
UNITS = "us|ms|s|seconds?|minutes?|hours?|days?|KiB|MiB|GiB|KB|MB|GB|bytes|characters|%"
COUNTED = "descriptors|volumes|files|threads|users|octal digits"
WORDS = "two|three|four|five|eight|ten"
# errno.errorcode has one name for each number: ENOTSUP, but neither EOPNOTSUPP nor EWOULDBLOCK.
ERRNOS = "|".join(name for name in dir(errno) if name.startswith("E"))
FIGURE = re.compile(
    rf"\b\d[\d,.]*\s(?:{UNITS}|{COUNTED})(?![\w-])|\b(?:{WORDS})\s(?:{UNITS}|{COUNTED})\b"
    rf"|\b(?:{ERRNOS})\b|\"Transport endpoint is not\s+connected\""
)


def paragraphs(text: str) -> Iterator[str]:
    """Yield each run of lines without a blank line between; code is left out."""
    plain = FENCE.sub("", text)
    lines = ("" if line.startswith("    ") else line for line in plain.split("\n"))
    yield from re.split(r"\n\s*\n", "\n".join(lines))


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_paragraph_with_a_figure_names_its_test(document: str) -> None:
    unshown = [
        (found[0], paragraph.strip()[:70])
        for paragraph in paragraphs((ROOT / document).read_text())
        if (found := FIGURE.search(paragraph)) and not SHOWN.search(paragraph)
    ]

    assert unshown == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_test_that_a_document_names_is_there(document: str) -> None:
    names = [
        name.strip()
        for shown in SHOWN.findall((ROOT / document).read_text())
        for name in shown.split(",")
    ]
    missing = []
    for name in names:
        path, _, function = name.partition("::")
        if not (ROOT / path).is_file() or (function and function not in functions_in(ROOT / path)):
            missing.append(name)

    assert missing == []


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("It waits 5 s for each answer.", 1),
        ("The call fails with EPERM.", 1),
        ("The call fails with EOPNOTSUPP.", 1),
        ("A thread sets O_APPEND on an EXT4 file.", 0),
        ("It gives up after two seconds.", 1),
        ("Docker Engine 26.1 has it, and Linux 6.9.", 0),
        ("The table has 3 columns, 64-bit ones.", 0),
    ],
)
def test_figures_are_found_by_their_units(text: str, figures: int) -> None:
    assert len(FIGURE.findall(text)) == figures

"""The tables, links and paths of the documents agree with the code."""

import ast
import logging
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path

import msgspec
import pytest

from passthrough.options.sessions import (
    FIRST_IDMAP,
    FIRST_KERNEL_SESSION,
    FIRST_SANDBOX,
    LACKING,
    Release,
)
from passthrough.options.table import OPTIONS, Requested
from passthrough.options.vocabulary import ALIASES, MEANINGLESS
from passthrough.session import abi
from passthrough.worker.seccomp import MACHINES
from plugin.events import EVENTS
from plugin.mounting import failures
from tests.support.tools import events, faults, features, lacks, man, option_tables

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(path for name in ("docs", "tests") for path in (ROOT / name).rglob("*.md")),
]
WORDS_OF_THE_CODE = {
    word
    for package in ("plugin", "passthrough", "benchmarks", "tests")
    for path in (ROOT / package).rglob("*.py")
    for word in re.findall(r"\w+", path.read_text())
}
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
LINES = "## Lines of the log"
DEBUG_LINES = "## Lines at the level debug"
LOGGED = {f"log.{level}" for level in ("warning", "error", "exception", "critical")}
# A line with words of its own.
WORDS = re.compile(r"\b(?!volume\b)[a-z]{3}")
COMMAND = "run `python -m tests.support.tools.option_tables`"


def test_each_option_is_in_one_of_the_three_tables_of_the_readme() -> None:
    tables = option_tables.tables(option_tables.README)

    assert len(tables) == 3
    assert sorted(chain(*tables)) == sorted(option_tables.NAMES)


def test_the_readme_has_every_option_with_its_default_and_what_it_accepts() -> None:
    readme = option_tables.README

    assert readme.read_text() == option_tables.updated(readme, option_tables.in_readme), COMMAND


def test_each_option_has_one_row_of_details_with_its_default() -> None:
    details = option_tables.DETAILS

    assert sorted(chain(*option_tables.tables(details))) == sorted(option_tables.NAMES)
    assert details.read_text() == option_tables.updated(details, option_tables.in_details), COMMAND


def test_every_alias_is_documented_with_its_option() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| `(\w+)=(\w+)` \|$", option_tables.DETAILS.read_text(), re.MULTILINE
    )

    assert {alias: (name, value) for alias, name, value in rows} == ALIASES


def test_every_field_of_requested_options_has_a_row() -> None:
    assert {field.name for field in msgspec.structs.fields(Requested)} == set(OPTIONS)


def test_options_that_a_session_lacks_are_documented_with_the_reason() -> None:
    text = (ROOT / "docs" / "sessions.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.+?) \|$", text, re.MULTILINE)
    meaningless = re.findall(r"^\| `(\w+)` \| ([^`].+?) \|$", text, re.MULTILINE)

    assert rows == [
        (option, session, lack.reason)
        for session, lacks in LACKING.items()
        for option, lack in lacks.items()
    ]
    assert dict(meaningless) == MEANINGLESS


def test_the_documented_limits_of_libfuse_are_the_marks_of_the_battery() -> None:
    """The command `python -m tests.support.tools.lacks` updates the table."""
    assert lacks.TABLE.present() == lacks.table() != ""


def test_the_documented_faults_are_the_marks_of_the_battery() -> None:
    """The command `python -m tests.support.tools.faults` updates the table."""
    assert faults.TABLE.present() == faults.table()


def test_each_feature_with_a_known_fault_has_a_test_that_shows_one() -> None:
    assert {fault.feature for fault in faults.faults()} == set(faults.FEATURES)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", document.read_text()):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_path_in_a_document_exists(document: Path) -> None:
    paths = re.findall(
        r"`((?:passthrough|plugin|tests|benchmarks|scripts|docs)/[\w/.-]+)`", document.read_text()
    )

    assert [path for path in paths if not (ROOT / path).exists()] == []


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of *document*."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_of_the_code_in_documents_exist(document: Path) -> None:
    """It checks `Class.member` and `_name`: no program and no kernel names things in this way."""
    spans = re.findall(r"`([A-Z]\w+\.[a-z_]\w+|_[A-Z][A-Z_]+|_[a-z_]+)`", document.read_text())

    assert {span for span in spans if span.split(".")[-1] not in WORDS_OF_THE_CODE} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_test_that_a_table_names_is_there(document: Path) -> None:
    """A table names tests as `test_x.py::test_name`, without the directory."""
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", document.read_text())

    assert [
        f"{file}::{name}"
        for file, name in named
        if not any(f"def {name}(" in path.read_text() for path in (ROOT / "tests").rglob(file))
    ] == []


def test_each_warning_of_the_code_is_explained() -> None:
    """docs/operations.md has a row for each line at WARNING or above, with … for each value.

    A line of values alone, such as a note, has no row.
    """
    rows = re.findall(r"^\| (`+)(.+?)\1 \|", OPERATIONS.partition(LINES)[2], re.MULTILINE)

    assert {line for _, line in rows} == {line for line in warnings() if WORDS.search(line)}


def test_each_line_of_workers_at_debug_is_explained() -> None:
    section = OPERATIONS.partition(DEBUG_LINES)[2].partition(LINES)[0]
    rows = re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)

    told = failures.LINE.replace("{}", "…")
    assert sorted(rows) == sorted({told, *logged({"log.debug"}, ["passthrough"])})


def warnings() -> Iterator[str]:
    """Yield the text of each line that the code logs at WARNING or above."""
    yield from logged(LOGGED, ["plugin", "passthrough"])
    yield from (events.line(event) for event in EVENTS if event.level >= logging.WARNING)


def logged(calls: Collection[str], packages: Iterable[str]) -> Iterator[str]:
    """Yield the text of each line that *packages* log by one of *calls*, with … for each value."""
    for package in packages:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in calls:
                    yield re.sub(r"(%[.\d]*[a-z])+", "…", ast.literal_eval(node.args[0]))


def test_the_documented_events_are_those_of_the_code() -> None:
    """The command `python -m tests.support.tools.events` writes the table."""
    assert events.TABLE.present() == events.table()


def test_the_documented_features_of_init_are_those_of_the_code() -> None:
    """The command `python -m tests.support.tools.features` updates the table."""
    assert features.TABLE.present() == features.table()


def test_the_releases_of_linux_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "kernels.md").read_text()
    rows = re.findall(r"^\| (\d+)\.(\d+) \| (?:7\.(\d+))? ?\| (.+?) \|", text, re.MULTILINE)
    found: dict[str, tuple[Release, str]] = {
        feature: ((int(major), int(minor)), protocol) for major, minor, protocol, feature in rows
    }

    assert found["`session=kernel`"] == (FIRST_KERNEL_SESSION, str(abi.LEAST_MINOR))
    assert found["`idmap=true`"] == (FIRST_IDMAP, "")
    (sandbox,) = (value for feature, value in found.items() if feature.startswith("the [sandbox]"))
    assert sandbox == (FIRST_SANDBOX, "")
    (newest,) = [value for value in found.values() if value[1] == str(abi.MINOR)]
    assert newest[0] == abi.MINOR_SINCE


def test_the_machines_of_the_sandbox_are_documented() -> None:
    text = (ROOT / "docs" / "kernels.md").read_text()
    names = re.search(r"^\| (.+) or (\w+) \| the sandbox \|", text, re.MULTILINE)

    assert names is not None
    assert {*names[1].split(", "), names[2]} == set(MACHINES)


def test_the_comparison_has_the_figures_of_the_benchmarks() -> None:
    measured = table_of("performance.md", "## Compared with others, on an idle machine")
    compared = table_of("comparison.md", "## Speed")

    assert compared == {
        group: [values[0], values[1], values[3]] for group, values in measured.items()
    }
    measured = table_of("performance.md", "## Compared with rclone and sshfs")
    assert table_of("comparison.md", "### File systems of the other plugins") == measured


def table_of(document: str, heading: str) -> dict[str, list[str]]:
    """Return the rows of the first table of figures below *heading*, without the head."""
    section = (ROOT / "docs" / document).read_text().partition(heading)[2]
    rows = section.partition("--:|\n")[2].partition("\n\n")[0].splitlines()
    cells = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows if row[0] == "|")
    return {first: others for first, *others in cells}


def test_the_manual_page_is_current() -> None:
    """The command `python -m tests.support.tools.man` writes the page."""
    assert man.PAGE.read_text() == man.page()

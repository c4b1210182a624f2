"""The document of the findings, and the verdict for scripts."""

import re

import pytest

from plugin.commands.document import plain
from plugin.doctor import report
from plugin.doctor.examination import CHECKS
from plugin.doctor.finding import Finding, State, listed
from tests.support.tools.generated import REPOSITORY


def finding(check: str, state: State) -> Finding:
    return Finding(check=check, state=state, found="a fact", meaning="a loss", remedy="a way")


def test_the_document_has_each_check_and_a_block_for_what_is_not_ok() -> None:
    found = [finding("first", State.OK), finding("second", State.ERROR)]
    assert list(plain(report.document(found))) == [
        "CHECK   STATE  FOUND",
        "first   ok     a fact",
        "second  error  a fact",
        "",
        "second (error):",
        "found    a fact",
        "meaning  a loss",
        "remedy   a way",
        "",
        "result  1 error, 1 ok",
    ]


def test_the_result_counts_the_findings_by_their_state() -> None:
    states = [State.NOTE, *[State.OK] * 3, *[State.WARNING] * 2]
    found = [finding(str(number), state) for number, state in enumerate(states)]
    assert list(plain(report.document(found)))[-1] == "result  2 warnings, 1 note, 3 ok"


@pytest.mark.parametrize(
    ("state", "well", "strictly_well"),
    [
        (State.OK, True, True),
        (State.NOTE, True, True),
        (State.WARNING, True, False),
        (State.ERROR, False, False),
    ],
)
def test_the_verdict(state: State, well: bool, strictly_well: bool) -> None:
    found = [finding("first", State.OK), finding("second", state)]
    assert report.is_well(found, strict=False) == well
    assert report.is_well(found, strict=True) == strictly_well


def test_the_documents_have_each_check_in_the_order_of_the_report() -> None:
    section = (REPOSITORY / "docs/commands.md").read_text().partition("\n## passfs doctor\n")[2]
    table = section.partition("| check | looks at |")[2].partition("\n\n")[0]
    names = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)
    assert re.findall("`(.+?)`", " ".join(names)) == [check.name for check in CHECKS]


def test_long_lists_are_cut() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([*"abcdefg"]) == "a, b, c, d, e and 2 more"

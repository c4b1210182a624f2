import os

import pytest

from passthrough.core import opening
from passthrough.core.opening import OpenFlags
from passthrough.options.choices import Atime, Sandbox
from passthrough.options.effective import Effective
from tests.support.tools.options import effective

ADDED = os.O_CLOEXEC
NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
# Flags of open(2) by what the options of a volume make of them.
REWRITTEN = {
    "as it is": (
        effective(),
        os.O_RDWR | os.O_TRUNC | os.O_SYNC,
        os.O_RDWR | os.O_TRUNC | os.O_SYNC,
    ),
    "for the caller's kernel": (effective(), NEW | os.O_NOCTTY, os.O_RDONLY),
    "append": (effective(), os.O_WRONLY | os.O_APPEND, os.O_WRONLY),
    "direct": (effective(), os.O_DIRECT, os.O_DIRECT),
    "no direct": (effective(allow_direct_io=False), os.O_RDWR | os.O_DIRECT, os.O_RDWR),
    "noatime": (effective(atime=Atime.NOATIME), os.O_RDONLY, os.O_RDONLY),
    "noatime without a sandbox": (
        effective(atime=Atime.NOATIME, sandbox=Sandbox.NONE),
        os.O_RDONLY,
        os.O_NOATIME,
    ),
    "writeback, reading": (effective(writeback=True), os.O_RDONLY, os.O_RDONLY),
    "writeback, writing": (effective(writeback=True), os.O_WRONLY, os.O_RDWR),
    "writeback, both": (effective(writeback=True), os.O_RDWR, os.O_RDWR),
    "writeback, appending": (effective(writeback=True), os.O_WRONLY | os.O_APPEND, os.O_RDWR),
}


@pytest.mark.parametrize(("config", "given", "expected"), REWRITTEN.values(), ids=REWRITTEN)
def test_what_reaches_the_host(config: Effective, given: int, expected: int) -> None:
    """On creation and on opening alike; what is created is new."""
    flags = OpenFlags(config)

    assert flags.existing(given) == expected | ADDED
    assert flags.created(given) == expected | ADDED | NEW


@pytest.mark.parametrize(
    ("config", "followed"),
    [
        (effective(), os.O_APPEND | os.O_DIRECT | os.O_SYNC),
        (effective(allow_direct_io=False), os.O_APPEND | os.O_SYNC),
        (effective(writeback=True), os.O_SYNC),
    ],
)
def test_what_single_requests_follow(config: Effective, followed: int) -> None:
    flags = OpenFlags(config)

    assert flags.of_request(0xFFFF_FFFF) == followed
    assert flags.of_request(0) == 0


def test_a_file_without_a_name_may_be_one_for_ever() -> None:
    flags = OpenFlags(effective())

    asked = os.O_RDWR | os.O_TMPFILE
    assert flags.unnamed(asked) == asked | ADDED
    assert flags.unnamed(asked | os.O_EXCL) == asked | os.O_EXCL | ADDED


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        (os.O_RDONLY, False),
        (os.O_RDONLY | os.O_APPEND, False),
        (os.O_RDONLY | os.O_TRUNC, True),
        (os.O_WRONLY, True),
        (os.O_RDWR, True),
    ],
)
def test_what_changes_a_file(flags: int, changes: bool) -> None:
    assert opening.changes(flags) is changes

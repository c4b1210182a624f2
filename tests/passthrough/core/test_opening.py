import os

import pytest

from passthrough.core import opening
from passthrough.core.opening import OpenFlags
from passthrough.options.config import Atime, Config

ADDED = os.O_CLOEXEC
NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
# Flags of open(2) by what the options of a volume make of them.
REWRITTEN = {
    "as it is": (Config(), os.O_RDWR | os.O_TRUNC | os.O_SYNC, os.O_RDWR | os.O_TRUNC | os.O_SYNC),
    "for the caller's kernel": (Config(), NEW | os.O_NOCTTY, os.O_RDONLY),
    "append": (Config(), os.O_WRONLY | os.O_APPEND, os.O_WRONLY),
    "direct": (Config(), os.O_DIRECT, os.O_DIRECT),
    "no direct": (Config(allow_direct_io=False), os.O_RDWR | os.O_DIRECT, os.O_RDWR),
    "noatime": (Config(atime=Atime.NOATIME), os.O_RDONLY, os.O_NOATIME),
    "writeback, reading": (Config(writeback=True), os.O_RDONLY, os.O_RDONLY),
    "writeback, writing": (Config(writeback=True), os.O_WRONLY, os.O_RDWR),
    "writeback, both": (Config(writeback=True), os.O_RDWR, os.O_RDWR),
    "writeback, appending": (Config(writeback=True), os.O_WRONLY | os.O_APPEND, os.O_RDWR),
}


@pytest.mark.parametrize(("config", "given", "expected"), REWRITTEN.values(), ids=REWRITTEN)
def test_what_reaches_the_host(config: Config, given: int, expected: int) -> None:
    """On creation and on opening alike; what is created is new."""
    flags = OpenFlags(config)

    assert flags.existing(given) == expected | ADDED
    assert flags.created(given) == expected | ADDED | NEW


@pytest.mark.parametrize(
    ("config", "followed"),
    [
        (Config(), os.O_APPEND | os.O_DIRECT | os.O_SYNC),
        (Config(allow_direct_io=False), os.O_APPEND | os.O_SYNC),
        (Config(writeback=True), os.O_DIRECT | os.O_SYNC),
    ],
)
def test_what_single_requests_follow(config: Config, followed: int) -> None:
    flags = OpenFlags(config)

    assert flags.of_request(0xFFFF_FFFF) == followed
    assert flags.of_request(0) == 0


def test_a_file_without_a_name_may_be_one_for_ever() -> None:
    flags = OpenFlags(Config())

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

"""damage.pyx: what a successor makes of memory in which its predecessor has left wrong values."""

import errno
import os
import struct
from pathlib import Path

import pytest

from passthrough.options.effective import Effective
from passthrough.session.abi import Opcode
from tests.passthrough.core.probe_damage import LONGEST_REPLY, MARK, touch_reply, unused_nodeid
from tests.support.fakes.kernel import message
from tests.support.tools import wire
from tests.support.tools.callers import ROOT
from tests.support.tools.damaged import PLAIN, UNOPENED, Left, attempt

HEAD = "the head of the tables"
PLACE = "a place of files"
INODE = "an inode"
ROOM = "the room for requests"
RECORD = "a record of locks"
HIGH, NEGATIVE = (1 << 31) - 1, 1 << 31
BY_HANDLE, LONG = 1, 1 | 32
# Wrong values by name, and what the successor calls damaged.
WRONG: dict[str, tuple[dict[str, int], str]] = {
    "another version": ({"version": 99}, HEAD),
    "more inodes": ({"limit of inodes": 1 << 26}, HEAD),
    "fewer inodes": ({"limit of inodes": 1 << 20}, HEAD),
    "more files": ({"limit of files": 1 << 27}, HEAD),
    "another budget": ({"budget": 1}, HEAD),
    "inodes elsewhere": ({"start of inodes": 1 << 40}, HEAD),
    "a longer hash": ({"entries of the hash": 1 << 40}, HEAD),
    "no inode": ({"end of inodes": 1}, HEAD),
    "inodes without end": ({"end of inodes": HIGH}, HEAD),
    "no file": ({"end of files": 0}, HEAD),
    "files without end": ({"end of files": HIGH}, HEAD),
    "no directory": ({"end of directories": 0}, HEAD),
    "no places": ({"places": 0}, HEAD),
    "places without end": ({"places": HIGH}, HEAD),
    "no mounts": ({"mounts": 0}, HEAD),
    "mounts without end": ({"mounts": HIGH}, HEAD),
    "a place without a mount": ({"mount": 1}, PLACE),
    "a place on a far mount": ({"mount": HIGH}, PLACE),
    "no root": ({"root": 1 << 32 | 1}, INODE),
    "an inode without a place": ({"place": 1}, INODE),
    "an inode in a far place": ({"place": HIGH}, INODE),
    "an open file that is not there": ({"notes": 9}, INODE),
    "a far open file": ({"notes": HIGH}, INODE),
    "a handle that is too long": ({"flags": BY_HANDLE, "handle": 25}, INODE),
    "a long handle that is too long": ({"flags": LONG, "long handle": 129}, INODE),
    "no place for requests": ({"places of requests": 0}, ROOM),
    "less than no place for requests": ({"places of requests": NEGATIVE}, ROOM),
    "too many places for requests": ({"places of requests": 1 << 20}, ROOM),
    "requests without pages": ({"present": 0}, ROOM),
    "requests of too many pages": ({"present": HIGH}, ROOM),
    "a request that is too long": ({"length of a request": 1 << 30}, "a request"),
    "records without end": ({"end of records": HIGH}, RECORD),
    "too many files that lock": ({"opened": 1 << 20}, RECORD),
    "too many ranges": ({"ranges": 7}, RECORD),
    "ranges without end": ({"ranges": HIGH}, RECORD),
}
TRIALS = 60


def test_what_a_worker_leaves_is_good(source: Path) -> None:
    def run() -> None:
        for config in PLAIN, UNOPENED:
            left = Left(source, config)
            assert left.succeed() == left.succeed(afresh=True) == "served"

    ROOT.run(run)


def test_wrong_values_are_refused(source: Path) -> None:
    """By a worker of the same program, and by one of another program."""

    def run() -> None:
        left = Left(source, PLAIN)
        found = {}
        for name, (wrong, _) in WRONG.items():
            left.restore()
            left.poison(wrong)
            found[name] = left.succeed()
            assert not left.succeed(afresh=True).startswith("ended"), name
        assert found == {name: f"refused: {what}" for name, (_, what) in WRONG.items()}

    ROOT.run(run)


def test_a_slot_that_is_not_in_use_is_no_inode(source: Path) -> None:
    def run() -> None:
        left = Left(source, PLAIN)
        nodeid = unused_nodeid(left.core)
        left.poison({"unused inode": nodeid, "place of the unused inode": HIGH})
        asked = message(Opcode.READDIRPLUS, wire.READ_IN.pack(0, 0, 4096, 0, 0, 0), nodeid, 2)
        forget = message(Opcode.FORGET, wire.FORGET_IN.pack(1), nodeid, 4)
        assert left.succeed(extra=[asked, forget]) == "served"

    ROOT.run(run)


def test_a_mark_of_a_stream_has_no_more_names_than_there_is_room_for(source: Path) -> None:
    def run() -> None:
        left = Left(source, PLAIN)
        left.write(3, MARK["marks"] + MARK["passed"], struct.pack("=I", 1 << 27))
        assert left.succeed() == "served"

    ROOT.run(run)


@pytest.mark.parametrize("fd", [HIGH, (1 << 32) - 1], ids=["high", "none"])
def test_another_program_needs_the_descriptor_of_the_source(source: Path, fd: int) -> None:
    def run() -> None:
        left = Left(source, PLAIN)
        left.poison({"descriptor of the root": fd})
        assert left.succeed(afresh=True) == f"refused: {os.strerror(errno.EIO)}"

    ROOT.run(run)


def test_a_descriptor_that_is_not_open_takes_no_time(source: Path) -> None:
    """The successor looks for lost descriptors up to the highest one."""

    def run() -> None:
        left = Left(source, PLAIN)
        left.poison({"described": HIGH})
        assert left.succeed() == "served"

    ROOT.run(run)


def test_a_reply_lies_within_its_memory() -> None:
    def run() -> None:
        touch_reply(LONGEST_REPLY)

    ROOT.run(run)


@pytest.mark.parametrize("config", [PLAIN, UNOPENED], ids=["plain", "unopened"])
def test_random_values_crash_no_successor(source: Path, config: Effective) -> None:
    ROOT.run(lambda: attempt(source, config, 1, TRIALS))

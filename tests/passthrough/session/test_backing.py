import errno
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux.errors import os_error
from passthrough.session.backing import NONE, Backings, stack_depth
from tests.support.fakes.channel import FakeChannel

OVERLAYFS, TMPFS, EXT4 = 0x794C_7630, 0x0102_1994, 0xEF53


@pytest.fixture
def channel() -> FakeChannel:
    return FakeChannel()


@pytest.fixture
def backings(channel: FakeChannel) -> Backings:
    return Backings(channel)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o644)
    yield fd
    os.close(fd)


def test_one_id_serves_all_who_have_an_inode_open(
    channel: FakeChannel, backings: Backings, fd: int
) -> None:
    assert [backings.open(7, fd), backings.open(7, fd), backings.open(8, fd)] == [1, 1, 2]

    backings.release(7)
    assert channel.backed == [fd, fd]
    backings.release(7)
    backings.release(8)

    assert channel.backed == [-1, -1]
    assert len(backings) == 0


def test_who_opens_later_gets_a_new_id(backings: Backings, fd: int) -> None:
    first = backings.open(7, fd)
    backings.release(7)

    assert backings.open(7, fd) == first + 1


def test_what_is_released_too_often_or_was_never_open_changes_nothing(backings: Backings) -> None:
    backings.release(7)

    assert len(backings) == 0


@pytest.mark.parametrize("bit", [0o4000, 0o2000])
def test_a_file_with_a_suid_or_sgid_bit_does_not_pass_through_while_it_is_open(
    channel: FakeChannel, backings: Backings, fd: int, bit: int
) -> None:
    os.fchmod(fd, bit | 0o755)
    assert backings.open(7, fd) == NONE
    os.fchmod(fd, 0o755)

    assert backings.open(7, fd) == NONE  # the kernel has it in its cache
    backings.release(7)
    backings.release(7)
    assert backings.open(7, fd) != NONE
    assert len(channel.backed) == 1


def test_bits_that_come_while_a_file_passes_through_are_noted_until_it_is_closed(
    backings: Backings, fd: int
) -> None:
    backings.note_privileges(7)  # nothing has it open
    backings.open(7, fd)
    assert not backings.may_have_lost_privileges(7)

    backings.note_privileges(7)
    assert backings.may_have_lost_privileges(7)
    backings.release(7)
    assert not backings.may_have_lost_privileges(7)
    backings.open(7, fd)
    assert not backings.may_have_lost_privileges(7)
    backings.release(7)


@pytest.mark.logs("read and written by the worker: they lie on too many")
def test_a_file_that_the_kernel_cannot_pass_on_is_told_of_once(
    channel: FakeChannel,
    backings: Backings,
    fd: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refused(_: int) -> int:
        raise os_error(errno.ELOOP)

    monkeypatch.setattr(channel, "open_backing", refused)
    with caplog.at_level(logging.WARNING):
        assert [backings.open(number, fd) for number in (7, 8, 7)] == [NONE] * 3
    backings.release(7)
    backings.release(7)
    backings.release(8)

    assert len(caplog.records) == 1
    assert len(backings) == 0


def test_trying_whether_files_can_pass_through_leaves_nothing_held(
    channel: FakeChannel, backings: Backings
) -> None:
    assert backings.why_not() == ""
    assert channel.backed == [-1]


def test_why_no_file_can_pass_through(
    channel: FakeChannel, backings: Backings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: int) -> int:
        raise os_error(errno.EPERM)

    monkeypatch.setattr(channel, "open_backing", refused)

    assert backings.why_not().startswith("it takes CAP_SYS_ADMIN")


def test_looking_for_o_direct_changes_nothing(channel: FakeChannel, fd: int) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)

    assert Backings(channel, always_direct=True).open(7, fd) == 1
    assert fcntl.fcntl(fd, fcntl.F_GETFL) == flags


def test_threads_that_open_at_once_agree_on_an_id(
    channel: FakeChannel, backings: Backings, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, make = threading.Barrier(2), channel.open_backing

    def slow(fd: int) -> int:
        both.wait(10)
        return make(fd)

    monkeypatch.setattr(channel, "open_backing", slow)
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.append(backings.open(7, fd))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(got)) == 1
    assert channel.backed.count(-1) == 1
    assert channel.backed[got[0] - 1] == fd


def test_a_source_that_stands_on_another_file_system_lies_deeper() -> None:
    assert [stack_depth(kind) for kind in (TMPFS, EXT4, OVERLAYFS)] == [1, 1, 2]

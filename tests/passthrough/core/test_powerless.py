"""Calls of a thread as another user without capabilities; switches that fail end the process."""

import errno
import functools
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.passthrough.core.probe_identity import Probe
from tests.support.tools.core_threads import (
    CALLER,
    EXIT_IDENTITY_LOST,
    ITSELF,
    LIMIT_S,
    NO_FILES_ID,
    NO_ID,
    OTHER,
    ROOT,
    Identity,
    ended,
    in_thread,
    present,
    refused,
    status,
    without_groups,
)

REPORT_NO_IDENTITY = 5


def test_the_thread_has_other_ids_and_no_capabilities_inside_the_guard_only() -> None:
    volume = Probe(squash=ROOT)

    def run() -> list[Identity]:
        inside = volume.as_powerless(CALLER, (), lambda: present(volume))
        return [inside, present(volume)]

    assert without_groups(volume, run) == [Identity(CALLER, [], True), ITSELF]


def test_only_one_thread_has_the_supplementary_groups_and_inside_the_guard_only() -> None:
    volume = Probe(squash=ROOT)
    meeting = threading.Barrier(2, timeout=LIMIT_S)

    def inside() -> list[Identity]:
        meeting.wait()
        before = present(volume)
        between = volume.as_itself(lambda: present(volume))
        meeting.wait()
        return [before, between, present(volume)]

    def run() -> list[Identity]:
        return volume.as_powerless(CALLER, (41_008, 41_007), inside)

    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(lambda: without_groups(volume, run))
        meeting.wait()
        others = [status()["Groups"], status()["Uid"].split()[3]]
        meeting.wait()
        another = Identity(CALLER, [41_007, 41_008], True)
        assert acting.result(LIMIT_S) == [another, ITSELF, another]
    assert others == ["", "0"]


def test_an_error_inside_the_guards_ends_them() -> None:
    volume = Probe(squash=ROOT)

    def fail() -> None:
        raise ZeroDivisionError

    def run() -> None:
        with pytest.raises(ZeroDivisionError):
            volume.as_powerless(CALLER, (5,), fail)
        with pytest.raises(ZeroDivisionError):
            volume.as_powerless(CALLER, (5,), lambda: volume.as_itself(fail))

    without_groups(volume, run)


def test_the_worker_acts_as_itself_once_and_outside_by_no_switch() -> None:
    volume = Probe(squash=ROOT)

    def nested() -> list[Identity]:
        return [
            volume.as_itself(lambda: volume.as_itself(lambda: present(volume))),
            present(volume),
        ]

    def run() -> list[Identity]:
        return [
            volume.as_itself(lambda: present(volume)),
            *volume.as_powerless(CALLER, (), nested),
        ]

    assert without_groups(volume, run) == [ITSELF, ITSELF, Identity(CALLER, [], True)]


def test_guards_inside_the_guard_neither_restore_nor_lose_capabilities(tmp_path: Path) -> None:
    volume = Probe(squash=ROOT, anonymous=CALLER).asked_by(0, 0)
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o6755)
    fd = os.open(tmp_path / "file", os.O_PATH)
    guards: list[Callable[[Callable[[], Identity]], Identity]] = [
        lambda call: volume.as_the_caller(0o2755, call),
        lambda call: volume.clearing(NO_FILES_ID, call),
        lambda call: volume.keeping(None, call),
        lambda call: volume.content(fd, False, True, 1, call),
        lambda call: volume.content(fd, True, False, 1, call),
        lambda call: volume.mode(fd, 0o4755, True, call),
    ]

    def inside(guard: Callable[[Callable[[], Identity]], Identity]) -> list[Identity]:
        return [guard(lambda: present(volume)), present(volume)]

    def run() -> list[Identity]:
        found = []
        for guard in guards:
            found += volume.as_powerless(CALLER, (), functools.partial(inside, guard))
            found.append(present(volume))
        return found

    another = Identity(CALLER, [], True)
    try:
        assert without_groups(volume, run) == [another, another, ITSELF] * len(guards)
    finally:
        os.close(fd)


def test_a_thread_inside_the_guard_cannot_act_with_other_ids(tmp_path: Path) -> None:
    volume = Probe(squash=ROOT).asked_by(*OTHER)
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_PATH)

    def inside() -> Identity:
        for ids in (OTHER, CALLER):
            refused(errno.EIO, lambda ids=ids: volume.as_powerless(ids, (), list))  # type: ignore[misc]
        refused(errno.EIO, lambda: volume.as_the_caller(0, list))
        refused(errno.EIO, lambda: volume.mode(fd, 0o4755, True, list))
        assert volume.acting(lambda: 5) == -errno.EIO
        return present(volume)

    try:
        assert without_groups(volume, lambda: volume.as_powerless(CALLER, (), inside)) == Identity(
            CALLER, [], True
        )
    finally:
        os.close(fd)


def test_the_guard_is_not_entered_inside_of_others() -> None:
    volume = Probe(squash=ROOT).asked_by(*CALLER)

    def enter() -> None:
        refused(errno.EIO, lambda: volume.as_powerless(OTHER, (), list))

    def run() -> None:
        volume.as_the_caller(0, enter)
        volume.keeping(None, enter)
        volume.clearing(7, enter)

    in_thread(volume, run)


@pytest.mark.parametrize("ids", [(NO_ID, 5), (5, NO_ID)])
def test_the_guard_refuses_invalid_ids(ids: tuple[int, int]) -> None:
    volume = Probe(squash=ROOT)

    in_thread(volume, lambda: refused(errno.EPERM, lambda: volume.as_powerless(ids, (), list)))


def test_the_guard_refuses_more_groups_than_it_has_room_for() -> None:
    volume = Probe(squash=ROOT)

    in_thread(
        volume,
        lambda: refused(errno.EIO, lambda: volume.as_powerless(CALLER, range(1, 10), list)),
    )


def test_a_switch_that_the_kernel_ignores_is_an_error() -> None:
    found = ended(
        "try: volume.as_powerless((41001, 41002), (), list)\n"
        "    except OSError as error: print(error.errno, volume.itself, volume.log.lines)",
        without="setuid",
    )

    assert found.stdout == f"{errno.EIO} True [({REPORT_NO_IDENTITY}, 41001)]\nwent on\n"


UNDOING = {
    "uid": "volume.as_powerless((41001, 41002), (), lambda: set_ids(41001, 0))",
    "gid": "volume.as_powerless((41001, 41002), (), lambda: set_ids(0, 41002))",
    "capabilities": "volume.as_powerless((41001, 41002), (), lambda: give_up(1))",
    "itself": (
        "volume.as_powerless((41001, 41002), (), lambda: volume.as_itself("
        "lambda: give_up(ALL & ~(1 << 7))))"
    ),
    "nested": (
        "volume.as_powerless((41001, 41002), (), lambda: volume.as_itself("
        "lambda: volume.as_powerless((5, 6), (), list)))"
    ),
    "groups": "volume.as_powerless((41001, 41002), (7,), list)",
    # The thread may have its former user for as long as that is its saved one.
    "own uid": (
        "os.setresuid(7, 7, 0); set_ids(0, 0); give_up(ALL & ~(1 << 7)); volume.prepare();"
        "volume.as_powerless((7, 41002), (), lambda: os.setresuid(7, 7, 7))"
    ),
}


@pytest.mark.parametrize("how", UNDOING)
def test_a_switch_that_cannot_be_undone_ends_the_process(how: str) -> None:
    found: subprocess.CompletedProcess[str] = ended(
        UNDOING[how], without="setgid" if how == "groups" else "sys_boot"
    )

    assert (found.returncode, found.stdout) == (EXIT_IDENTITY_LOST, "")
    assert "last words" in found.stderr

"""A thread's switches to the caller's ids; switches that fail end the process."""

import errno
import functools
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.passthrough.core import probe_identity
from tests.passthrough.core.probe_identity import Probe
from tests.support.tools.core_threads import (
    CALLER,
    CAP_FSETID,
    EXIT_IDENTITY_LOST,
    LIMIT_S,
    MAPPED,
    NO_FILES_ID,
    NO_ID,
    OTHER,
    capabilities,
    ended,
    in_thread,
    mapped,
    refused,
    status,
)


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    """Yield the descriptor of a directory that all users may write to."""
    tmp_path.chmod(0o777)
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def owner(name: str, directory: int) -> tuple[int, int]:
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return found.st_uid, found.st_gid


# Preparation


def test_a_prepared_thread_lacks_cap_fsetid_alone_and_may_raise_it() -> None:
    before, volume = status(), Probe()

    def run() -> tuple[dict[str, str], int]:
        return status(), volume.keeping(None, capabilities)

    inside, raised = in_thread(volume, run)

    assert int(before["CapEff"], 16) & ~int(inside["CapEff"], 16) == CAP_FSETID
    assert raised == int(before["CapEff"], 16)
    assert inside["CapPrm"] == before["CapPrm"]
    assert status() == before


def test_a_thread_with_other_ids_is_not_prepared() -> None:
    def run() -> None:
        probe_identity.set_ids(5, 0)
        refused(errno.EPERM, Probe().prepare)
        probe_identity.set_ids(0, 5)
        refused(errno.EPERM, Probe().prepare)
        probe_identity.set_ids(0, 0)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result(LIMIT_S)


@pytest.mark.parametrize("posix_acl", [True, False])
def test_a_thread_has_an_umask_of_its_own_with_acls(posix_acl: bool, top: int) -> None:
    volume = Probe(posix_acl=posix_acl)
    present = os.umask(0o022)
    os.umask(present)

    def run() -> list[int]:
        modes = []
        for number, mask in enumerate((0o077, 0o077, 0o007)):
            volume.set_umask(mask)
            os.mkdir(str(number), 0o777, dir_fd=top)
            modes.append(os.stat(str(number), dir_fd=top).st_mode & 0o777)
        return modes

    masks = (0o077, 0o077, 0o007) if posix_acl else (present,) * 3
    assert in_thread(volume, run) == [0o777 & ~mask for mask in masks]
    assert os.umask(present) == present


# Creation

CREATIONS: dict[str, Callable[[str, int], object]] = {
    "mkdir": lambda name, fd: os.mkdir(name, dir_fd=fd),
    "mknod": lambda name, fd: os.mknod(name, dir_fd=fd),
    "symlink": lambda name, fd: os.symlink("target", name, dir_fd=fd),
    "create": lambda name, fd: os.close(os.open(name, os.O_CREAT | os.O_EXCL, dir_fd=fd)),
}


@pytest.mark.parametrize("kind", CREATIONS)
@pytest.mark.parametrize(
    ("options", "asks", "expected"),
    [
        ({}, CALLER, CALLER),
        ({}, (0, 0), (0, 0)),
        ({}, (0, CALLER[1]), (0, CALLER[1])),
        ({}, (CALLER[0], 0), (CALLER[0], 0)),
        (MAPPED, (7, 8), (100_007, 200_008)),
        (MAPPED, (0, 0), (100_000, 200_000)),
        ({"users": [(0, 100_000, 10)]}, (7, 8), (100_007, 8)),
    ],
)
def test_new_files_belong_to_the_caller_inside_the_guard_and_to_root_after_it(
    kind: str,
    options: dict[str, list[tuple[int, int, int]]],
    asks: tuple[int, int],
    expected: tuple[int, int],
    top: int,
) -> None:
    volume = Probe(users=options.get("users", ()), groups=options.get("groups", ()))

    def run() -> tuple[int, int]:
        volume.asked_by(*asks)
        volume.as_the_caller(0o2755, lambda: CREATIONS[kind]("theirs", top))
        CREATIONS[kind]("ours", top)
        return volume.as_the_caller(0, lambda: volume.present)

    assert in_thread(volume, run) == expected
    assert owner("theirs", top) == expected
    assert owner("ours", top) == (0, 0)


def test_an_error_inside_the_guard_restores_the_ids(top: int) -> None:
    volume = Probe().asked_by(*CALLER)
    os.mkdir("taken", dir_fd=top)

    def run() -> None:
        with pytest.raises(FileExistsError):
            volume.as_the_caller(0o2755, lambda: os.mkdir("taken", dir_fd=top))

    in_thread(volume, run)


@pytest.mark.parametrize("asks", [(NO_ID, 0), (0, NO_ID), (NO_ID, NO_ID)])
def test_a_caller_without_an_id_creates_no_file(asks: tuple[int, int], top: int) -> None:
    """setfsuid(-1) only returns the present id: root would create the file."""
    volume = Probe().asked_by(*asks)

    def run() -> None:
        for mode in (0, 0o2755):
            refused(
                errno.EPERM,
                lambda mode=mode: volume.as_the_caller(  # type: ignore[misc]
                    mode, lambda: os.mkdir("theirs", dir_fd=top)
                ),
            )

    in_thread(volume, run)
    assert os.listdir(top) == []


@pytest.mark.parametrize("asks", [(1000, 8), (7, 1000), (NO_ID, 8), (7, NO_ID)])
def test_a_caller_without_a_counterpart_creates_no_file(asks: tuple[int, int], top: int) -> None:
    volume = mapped().asked_by(*asks)

    def run() -> None:
        refused(
            errno.EPERM, lambda: volume.as_the_caller(0, lambda: os.mkdir("theirs", dir_fd=top))
        )

    in_thread(volume, run)
    assert os.listdir(top) == []
    assert [number for _, number in volume.log.lines] == [
        number for number in asks if number >= 1000
    ]


def test_two_threads_act_with_different_ids_at_a_time(top: int) -> None:
    """Both guards overlap, and each thread is root again while the other is inside its guard."""
    rounds = 100
    meeting = threading.Barrier(2, timeout=LIMIT_S)

    def act(asks: tuple[int, int]) -> None:
        volume = Probe().asked_by(*asks)

        def create(number: int) -> None:
            meeting.wait()
            os.mkdir(f"{asks[0]}-{number}", dir_fd=top)

        def run() -> None:
            for number in range(rounds):
                meeting.wait()
                volume.as_the_caller(0o2000 * (number % 2), functools.partial(create, number))
                os.mkdir(f"root-{asks[0]}-{number}", dir_fd=top)

        in_thread(volume, run)

    with ThreadPoolExecutor(2) as pool:
        for ended in [pool.submit(act, asks) for asks in (CALLER, OTHER)]:
            ended.result(LIMIT_S)

    for asks in (CALLER, OTHER):
        assert {owner(f"{asks[0]}-{number}", top) for number in range(rounds)} == {asks}
        assert {owner(f"root-{asks[0]}-{number}", top) for number in range(rounds)} == {(0, 0)}


def test_the_host_does_not_check_the_caller_again(top: int) -> None:
    """The directory belongs to root alone: the kernel has checked the caller for the mount."""
    os.fchmod(top, 0o700)
    volume = Probe().asked_by(*CALLER)

    in_thread(volume, lambda: volume.as_the_caller(0, lambda: os.mkdir("theirs", dir_fd=top)))

    assert owner("theirs", top) == CALLER


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("asks", [CALLER, (0, 0), (CALLER[0], 900)])
@pytest.mark.parametrize("mode", [0o2755, 0o2644, 0o6755])
def test_a_new_file_has_the_sgid_bit_of_its_directorys_group_unless_ids_are_mapped(
    restricted: bool, asks: tuple[int, int], mode: int, top: int
) -> None:
    """Without CAP_FSETID the host drops the bit for a caller outside of the group, inode(7).

    A bit without group execution stays: open(2) drops only one that gives a right.
    """
    os.fchown(top, 0, 900)
    os.fchmod(top, 0o2777)
    identity = [(0, 0, 1_000_000)]
    volume = Probe(users=identity, groups=identity) if restricted else Probe()
    volume.asked_by(*asks)

    def create() -> None:
        os.close(os.open("new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode, dir_fd=top))

    umask = os.umask(0)
    try:
        in_thread(volume, lambda: volume.as_the_caller(mode, create))
    finally:
        os.umask(umask)

    made = os.stat("new", dir_fd=top)
    keeps = not restricted or asks[1] == 900 or not mode & stat.S_IXGRP
    assert (made.st_uid, made.st_gid) == (asks[0], 900)
    assert made.st_mode & 0o7777 == (mode if keeps else mode & ~stat.S_ISGID)


# Switches that fail


@pytest.mark.parametrize(("capability", "acted_as"), [("setuid", "0:41002"), ("setgid", "41001:0")])
def test_a_failed_switch_ends_the_process(capability: str, acted_as: str) -> None:
    """Otherwise the owner of the next new file would be unknown."""
    found = ended("volume.as_the_caller(0, lambda: print('acted', flush=True))", without=capability)

    assert (found.returncode, found.stdout) == (EXIT_IDENTITY_LOST, "acted\n")
    assert f"acted as {acted_as}" in found.stderr


LOSING = {
    "uid": "volume.as_the_caller(0, lambda: set_ids(7, 41002))",
    "gid": "volume.as_the_caller(0, lambda: set_ids(41001, 7))",
    "capabilities of a creation": "volume.as_the_caller(0o2000, lambda: give_up(ALL & ~1))",
    "capabilities of keeping": "volume.keeping(None, lambda: give_up(ALL & ~1))",
    "capabilities of a mode": (
        "volume.mode(os.open('/dev/null', os.O_PATH), 0o4700, True, lambda: give_up(ALL & ~1))"
    ),
}


@pytest.mark.parametrize("code", LOSING.values(), ids=LOSING)
def test_ids_or_capabilities_that_cannot_be_restored_end_the_process(code: str) -> None:
    found = ended(code)

    assert (found.returncode, found.stdout) == (EXIT_IDENTITY_LOST, "")
    assert "last words" in found.stderr


def test_a_group_that_cannot_be_restored_ends_the_process() -> None:
    """A thread of another user without CAP_SETGID keeps its group."""
    found = ended("volume.clearing(7, lambda: (os.setresgid(7, 7, 7), give_up(ALL & ~(1 << 6))))")

    assert (found.returncode, found.stdout) == (EXIT_IDENTITY_LOST, "")
    assert "has the group 7" in found.stderr


def test_without_cap_fsetid_in_the_process_bits_go_and_requests_are_served() -> None:
    found = ended(
        "volume.as_the_caller(0o2000, list); volume.keeping(None, list)", without="fsetid"
    )

    assert (found.returncode, found.stdout) == (0, "went on\n")


@pytest.mark.parametrize("capability", ["setpcap"])
def test_a_thread_that_cannot_keep_its_capabilities_is_not_prepared(capability: str) -> None:
    found = ended("pass", without=capability)

    assert found.stdout == ""
    assert "[Errno 1]" in found.stderr


def test_no_guard_begins_inside_of_the_innermost_one() -> None:
    """There the thread is user NO_FILES_ID, which another guard would take for the worker's own."""
    volume = Probe().asked_by(*CALLER)
    inner: dict[str, Callable[[], object]] = {
        "caller": lambda: volume.as_the_caller(0, list),
        "keeping": lambda: volume.keeping(None, list),
        "clearing": lambda: volume.clearing(7, list),
        "powerless": lambda: volume.as_powerless(CALLER, [], list),
    }

    def run() -> None:
        for call in inner.values():
            refused(errno.EIO, functools.partial(volume.unreserved, call))
        twice = functools.partial(volume.unreserved, lambda: volume.known)
        assert volume.unreserved(twice) == (NO_FILES_ID, 0)
        assert not volume.unreserved(lambda: volume.itself)

    in_thread(volume, run)


def test_guards_are_not_nested() -> None:
    volume = Probe().asked_by(*CALLER)

    def run() -> None:
        refused(
            errno.EIO,
            lambda: volume.as_the_caller(0, lambda: volume.as_the_caller(0, list)),
        )
        refused(errno.EIO, lambda: volume.keeping(None, lambda: volume.keeping(None, list)))
        refused(errno.EIO, lambda: volume.clearing(7, lambda: volume.clearing(8, list)))
        refused(errno.EIO, lambda: volume.clearing(7, lambda: volume.as_the_caller(0, list)))

    in_thread(volume, run)

"""A thread's switches: to the caller's ids, and of CAP_FSETID; switches that fail end the process.

The tests run in threads of their own, because a prepared thread lacks CAP_FSETID for good.
"""

import errno
import os
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from tests.passthrough.native import probe_identity
from tests.passthrough.native.probe_identity import Probe

REPOSITORY = Path(__file__).resolve().parents[3]
EXIT_IDENTITY_LOST = 77
NONE, ROOT, ALL = 0, 1, 2
NO_ID, NO_FILES_ID = 0xFFFF_FFFF, 0xFFFF_FFF0
CALLER, OTHER = (41_001, 41_002), (41_003, 41_004)
CAP_FOWNER, CAP_FSETID = 1 << 3, 1 << 4
LIMIT_S = 30.0

R = TypeVar("R")


def in_thread(volume: Probe, function: Callable[[], R]) -> R:
    """Call *function* in a thread of *volume*, which must be outside of all guards after it."""

    def run() -> R:
        volume.prepare()
        before = status()
        try:
            return function()
        finally:
            assert volume.itself
            assert volume.known == volume.present == (0, 0)
            assert status() == before

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result(LIMIT_S)


def status() -> dict[str, str]:
    """Return ids, groups and capabilities of this thread."""
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: fields[name].strip() for name in ("Uid", "Gid", "Groups", "CapEff", "CapPrm")}


def capabilities() -> int:
    return int(status()["CapEff"], 16)


def refused(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        call()

    assert caught.value.errno == number


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
MAPPED = {"users": [(0, 100_000, 1000)], "groups": [(0, 200_000, 1000)]}


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
    volume = Probe(users=MAPPED["users"], groups=MAPPED["groups"]).asked_by(*asks)

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
                volume.as_the_caller(0o2000 * (number % 2), lambda number=number: create(number))
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


# Content

WRITES: dict[str, Callable[[str], object]] = {
    "write": lambda path: _with(path, os.O_WRONLY, lambda fd: os.pwrite(fd, b"x", 0)),
    "append": lambda path: _with(path, os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"x")),
    "truncate": lambda path: _with(path, os.O_WRONLY, lambda fd: os.ftruncate(fd, 0)),
    "open": lambda path: _with(path, os.O_WRONLY | os.O_TRUNC, os.fstat),
    "allocate": lambda path: _with(path, os.O_WRONLY, lambda fd: os.posix_fallocate(fd, 0, 9000)),
}
OWNER = (100_007, 200_008)


def _with(path: str, flags: int, call: Callable[[int], object]) -> None:
    fd = os.open(path, flags)
    try:
        call(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("bits", [0, stat.S_ISUID, stat.S_ISGID, stat.S_ISUID | stat.S_ISGID])
@pytest.mark.parametrize("permissions", [0o755, 0o745])
@pytest.mark.parametrize("clears", [True, False])
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize(
    ("volume", "member"),
    [
        (lambda fd: Probe(device=fd).asked_by(OWNER[0], 1), True),
        (lambda fd: Probe(device=fd).asked_by(1, OWNER[1]), True),
        (lambda fd: Probe(device=fd).asked_by(0, 0), False),
        (lambda fd: Probe(device=fd, users=[(0, 100_000, 9)]).asked_by(7, 1), True),
        (lambda fd: Probe(device=fd, groups=[(0, 200_000, 9)]).asked_by(0, 0), False),
    ],
    ids=["owner", "group", "root", "mapped owner", "mapped root"],
)
def test_a_change_of_content_clears_what_the_caller_may_not_keep(
    write: Callable[[str], object],
    bits: int,
    permissions: int,
    clears: bool,
    checked: bool,
    volume: Callable[[int], Probe],
    member: bool,
    tmp_path: Path,
) -> None:
    program = tmp_path / "program"
    program.write_text("content")
    os.chown(program, *OWNER)
    program.chmod(bits | permissions)
    told, device = os.pipe()
    served = volume(device)
    fd = os.open(program, os.O_PATH)
    try:
        in_thread(
            served, lambda: served.content(fd, clears, checked, 99, lambda: write(str(program)))
        )
        os.close(device)
        messages = os.read(told, 1000)
    finally:
        os.close(fd)
        os.close(told)

    kept = bits if not clears and served.to_host(0, 0) == (0, 0) else 0
    if not kept and not permissions & stat.S_IXGRP and (checked or member):
        kept = bits & stat.S_ISGID
    went = bits and (clears or served.to_host(0, 0) != (0, 0))
    assert program.stat().st_mode & 0o7777 == kept | permissions
    assert [struct.unpack_from("=Q", messages, at + 16)[0] for at in range(0, len(messages), 40)] == (
        [99] if went else []
    )


@pytest.mark.parametrize("asks", [(0, 0), (5, 5)])
def test_a_file_of_roots_group_loses_its_sgid_bit_by_a_caller_outside_of_it(
    asks: tuple[int, int], tmp_path: Path
) -> None:
    """A thread of the group 0 would keep the bit."""
    program = tmp_path / "program"
    program.write_text("content")
    os.chown(program, 7, 0)
    program.chmod(0o6745)
    volume = Probe().asked_by(*asks)
    fd = os.open(program, os.O_PATH)
    try:
        in_thread(
            volume,
            lambda: volume.content(fd, True, False, 1, lambda: WRITES["write"](str(program))),
        )
    finally:
        os.close(fd)

    assert program.stat().st_mode & 0o7777 == (0o745 if asks[1] else 0o2745)


def test_squashed_callers_keep_the_sgid_bit_of_the_anonymous_group_alone(tmp_path: Path) -> None:
    """Data go through the worker itself, by the right of the opener."""
    program = tmp_path / "program"
    for anonymous, kept in (((70, 80), 0), ((70, OWNER[1]), stat.S_ISGID), ((OWNER[0], 80), 0)):
        program.write_text("content")
        os.chown(program, *OWNER)
        program.chmod(0o6745)
        volume = Probe(squash=ROOT, anonymous=anonymous).asked_by(0, 0)
        fd = os.open(program, os.O_PATH)
        try:
            in_thread(
                volume,
                lambda volume=volume, fd=fd: volume.content(  # type: ignore[misc]
                    fd, False, True, 1, lambda: WRITES["write"](str(program))
                ),
            )
        finally:
            os.close(fd)
        assert program.stat().st_mode & 0o7777 == kept | 0o745


def test_a_squashed_caller_without_a_counterpart_changes_no_content(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.touch()
    program.chmod(0o4755)
    volume = Probe(squash=ROOT, users=[(0, 1, 1)]).asked_by(5, 0)
    fd = os.open(program, os.O_PATH)
    try:
        in_thread(
            volume,
            lambda: refused(errno.EPERM, lambda: volume.content(fd, True, True, 1, list)),
        )
    finally:
        os.close(fd)


@pytest.mark.parametrize(("group", "left"), [(NO_FILES_ID, 0o745), (OWNER[1], 0o2745), (0, 0o745)])
def test_clearing_keeps_an_sgid_bit_of_the_group_without_execution(
    group: int, left: int, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text("content")
    os.chown(program, *OWNER)
    program.chmod(0o6745)
    volume = Probe()

    def run() -> tuple[int, int]:
        def change() -> tuple[int, int]:
            WRITES["write"](str(program))
            return volume.present

        return volume.clearing(group, change)

    assert in_thread(volume, run) == (0, group)
    assert program.stat().st_mode & 0o7777 == left


@pytest.mark.parametrize("keeping", [True, False])
def test_chown_keeps_an_sgid_bit_without_execution_inside_the_guard_only(
    keeping: bool, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    os.chown(file, *OWNER)
    file.chmod(0o2745)
    volume = Probe()
    fd = os.open(file, os.O_PATH)

    def change() -> None:
        os.chown(file, 5, -1)

    try:
        in_thread(volume, lambda: volume.keeping(fd, change) if keeping else change())
    finally:
        os.close(fd)
    assert file.stat().st_mode & 0o7777 == (0o2745 if keeping else 0o745)


def test_a_file_without_bits_costs_no_switch(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    volume, restricted = Probe().asked_by(0, 0), Probe(users=[(0, 1, 5)]).asked_by(0, 0)
    fd = os.open(tmp_path / "file", os.O_PATH)
    try:
        for served in (volume, restricted):
            inside, during = in_thread(
                served,
                lambda served=served: (  # type: ignore[misc]
                    status(),
                    served.content(fd, True, False, 1, status),
                ),
            )
            assert inside == during
            assert in_thread(
                served, lambda served=served: served.keeping(fd, capabilities)  # type: ignore[misc]
            ) == int(inside["CapEff"], 16)
    finally:
        os.close(fd)


# chmod(2)


def changed_mode(
    volume: Probe, path: Path, mode: int, *, known: bool = True, before: int = 0o700
) -> tuple[int, tuple[int, int], int]:
    """Return the mode after chmod(2), and the ids and capabilities in the call."""
    path.chmod(before)
    fd = os.open(path, os.O_PATH)
    found: list[tuple[tuple[int, int], int]] = []

    def change() -> None:
        found.append((volume.present, capabilities()))
        os.chmod(f"/proc/self/fd/{fd}", mode)

    try:
        in_thread(volume, lambda: volume.mode(fd, mode, known, change))
    finally:
        os.close(fd)
    return path.stat().st_mode & 0o7777, *found[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    os.chown(tmp_path / "file", *OWNER)
    return tmp_path / "file"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "directory").mkdir()
    os.chown(tmp_path / "directory", *OWNER)
    return tmp_path / "directory"


@pytest.mark.parametrize("asks", [(0, 0), (5, 5), (7, 8), (NO_ID, NO_ID)])
@pytest.mark.parametrize("mode", [0o600, 0o4700, 0o2700, 0o6711, 0o1777, 0o7777])
def test_without_a_map_the_worker_sets_each_mode(
    asks: tuple[int, int], mode: int, file: Path
) -> None:
    volume = Probe().asked_by(*asks)
    set_to, ids, effective = changed_mode(volume, file, mode)

    assert (set_to, ids) == (mode, (0, 0))
    assert bool(effective & CAP_FSETID) is bool(mode & 0o6000)


def test_with_a_map_only_the_owner_sets_suid_and_sgid_bits(file: Path) -> None:
    for known, asks in ((False, (7, 8)), (True, (0, 0)), (True, (1, 8))):
        volume = Probe(users=MAPPED["users"], groups=MAPPED["groups"]).asked_by(*asks)
        for mode in (0o4700, 0o2700, 0o6755):
            refused(
                errno.EPERM,
                lambda volume=volume, mode=mode, known=known: changed_mode(  # type: ignore[misc]
                    volume, file, mode, known=known
                ),
            )
        assert changed_mode(volume, file, 0o1755, known=known)[:2] == (0o1755, (0, 0))
    volume = Probe(users=MAPPED["users"], groups=MAPPED["groups"]).asked_by(7, 8)
    set_to, ids, effective = changed_mode(volume, file, 0o6700)

    assert (set_to, ids) == (0o6700, OWNER)
    assert not effective & (CAP_FOWNER | CAP_FSETID)


def test_with_a_map_the_owner_sets_no_sgid_bit_of_another_group(file: Path) -> None:
    """The host knows the primary group alone."""
    volume = Probe(users=MAPPED["users"], groups=MAPPED["groups"]).asked_by(7, 9)

    assert changed_mode(volume, file, 0o6755)[0] == 0o4755


def test_with_a_map_an_unmapped_caller_sets_no_bits(file: Path) -> None:
    volume = Probe(users=MAPPED["users"], groups=MAPPED["groups"]).asked_by(7, 5000)

    refused(errno.EPERM, lambda: changed_mode(volume, file, 0o4700))
    assert volume.log.lines == [(1, 5000)]


def test_a_directory_gets_the_sgid_bit_of_a_mapped_group_by_its_owner(directory: Path) -> None:
    """The kernel has checked that the caller is a member of the group."""
    users, groups = MAPPED["users"], MAPPED["groups"]
    volume = Probe(users=users, groups=groups).asked_by(7, 9)
    set_to, ids, effective = changed_mode(volume, directory, 0o2755)

    assert (set_to, ids) == (0o2755, (100_007, 200_009))
    assert effective & (CAP_FOWNER | CAP_FSETID) == CAP_FSETID
    refused(
        errno.EPERM,
        lambda: changed_mode(
            Probe(users=users, groups=groups).asked_by(0, 0), directory, 0o2755
        ),
    )
    refused(
        errno.EPERM,
        lambda: changed_mode(
            Probe(users=users, groups=groups).asked_by(7, 9), directory, 0o2755, known=False
        ),
    )
    os.chown(directory, OWNER[0], 5)
    assert changed_mode(volume, directory, 0o2755)[0] == 0o755


@pytest.mark.parametrize(("asks", "known"), [((1, 1), True), ((7, 9), True), ((0, 0), False)])
def test_a_directory_may_keep_its_bits(
    asks: tuple[int, int], known: bool, directory: Path
) -> None:
    volume = Probe(users=MAPPED["users"], groups=MAPPED["groups"]).asked_by(*asks)
    set_to, ids, _ = changed_mode(volume, directory, 0o6711, known=known, before=0o6755)

    assert (set_to, ids) == (0o6711, (0, 0))


# Switches that fail

ENDING = """
import os, sys, threading
sys.path.insert(0, {repository!r})
from tests.passthrough.native.probe_identity import Probe, give_up, set_ids
ALL = (1 << 41) - 1
volume = Probe().asked_by(41001, 41002)
def run():
    volume.prepare()
    {code}
    print("went on", flush=True)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def ended(code: str, *, without: str = "sys_boot") -> subprocess.CompletedProcess[str]:
    """Run *code* in a prepared thread of a process that lacks a capability."""
    return subprocess.run(
        [
            *("setpriv", "--bounding-set", f"-{without}"),
            *(sys.executable, "-c", ENDING.format(repository=str(REPOSITORY), code=code)),
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.mark.parametrize(("capability", "acted_as"), [("setuid", "0:41002"), ("setgid", "41001:0")])
def test_a_failed_switch_ends_the_process(capability: str, acted_as: str) -> None:
    """Otherwise the owner of the next new file would be unknown."""
    found = ended(
        "volume.as_the_caller(0, lambda: print('acted', flush=True))", without=capability
    )

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
    found = ended(
        "volume.clearing(7, lambda: (os.setresgid(7, 7, 7), give_up(ALL & ~(1 << 6))))"
    )

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

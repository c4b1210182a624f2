"""Suid and sgid bits: which a change of content or owner leaves, and which chmod(2) sets."""

import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.passthrough.core.probe_identity import Probe
from tests.support.tools.core_threads import (
    CAP_FOWNER,
    CAP_FSETID,
    NO_FILES_ID,
    NO_ID,
    ROOT,
    capabilities,
    in_thread,
    mapped,
    refused,
    status,
)

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
def test_a_change_of_content_clears_what_the_caller_may_not_keep(  # noqa: PLR0917 - a table
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
    assert [
        struct.unpack_from("=Q", messages, at + 16)[0] for at in range(0, len(messages), 40)
    ] == ([99] if went else [])


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
                served,
                lambda served=served: served.keeping(fd, capabilities),  # type: ignore[misc]
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
        volume = mapped().asked_by(*asks)
        for mode in (0o4700, 0o2700, 0o6755):
            refused(
                errno.EPERM,
                lambda volume=volume, mode=mode, known=known: changed_mode(  # type: ignore[misc]
                    volume, file, mode, known=known
                ),
            )
        assert changed_mode(volume, file, 0o1755, known=known)[:2] == (0o1755, (0, 0))
    volume = mapped().asked_by(7, 8)
    set_to, ids, effective = changed_mode(volume, file, 0o6700)

    assert (set_to, ids) == (0o6700, OWNER)
    assert not effective & (CAP_FOWNER | CAP_FSETID)


def test_with_a_map_the_owner_sets_no_sgid_bit_of_another_group(file: Path) -> None:
    """The host knows the primary group alone."""
    volume = mapped().asked_by(7, 9)

    assert changed_mode(volume, file, 0o6755)[0] == 0o4755


def test_with_a_map_an_unmapped_caller_sets_no_bits(file: Path) -> None:
    volume = mapped().asked_by(7, 5000)

    refused(errno.EPERM, lambda: changed_mode(volume, file, 0o4700))
    assert volume.log.lines == [(1, 5000)]


def test_a_directory_gets_the_sgid_bit_of_a_mapped_group_by_its_owner(directory: Path) -> None:
    """The kernel has checked that the caller is a member of the group."""
    volume = mapped().asked_by(7, 9)
    set_to, ids, effective = changed_mode(volume, directory, 0o2755)

    assert (set_to, ids) == (0o2755, (100_007, 200_009))
    assert effective & (CAP_FOWNER | CAP_FSETID) == CAP_FSETID
    refused(
        errno.EPERM,
        lambda: changed_mode(mapped().asked_by(0, 0), directory, 0o2755),
    )
    refused(
        errno.EPERM,
        lambda: changed_mode(mapped().asked_by(7, 9), directory, 0o2755, known=False),
    )
    os.chown(directory, OWNER[0], 5)
    assert changed_mode(volume, directory, 0o2755)[0] == 0o755


@pytest.mark.parametrize(("asks", "known"), [((1, 1), True), ((7, 9), True), ((0, 0), False)])
def test_a_directory_may_keep_its_bits(asks: tuple[int, int], known: bool, directory: Path) -> None:
    volume = mapped().asked_by(*asks)
    set_to, ids, _ = changed_mode(volume, directory, 0o6711, known=known, before=0o6755)

    assert (set_to, ids) == (0o6711, (0, 0))

"""Inode numbers: unique for each file, stable, and the same in a listing."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools.columns import Ground
from tests.support.tools.disks import FILES, LARGE_SUBMOUNT, LISTED, LOWER, SUBMOUNTS
from tests.support.tools.listing import entries_of, listing
from tests.support.tools.mounts import forget

FORGET_TRIES = 5
FORGET_S = 0.1
LARGE = 1 << 47
BUFFER_BYTES = 2048

large_numbers = pytest.mark.columns(
    "control-overlay", "kernel-auto-overlay", "libfuse-auto-overlay"
)
two_disks = pytest.mark.columns(
    "control-submounts", "kernel-auto-submounts", "libfuse-auto-submounts"
)


def numbers(directory: Path) -> dict[str, int]:
    """Return st_ino of each name."""
    return {name: (directory / name).stat().st_ino for name in sorted(os.listdir(directory))}


def listed(directory: Path) -> dict[str, int]:
    """Return d_ino of each name, listed with a buffer of 2 KiB, as in readdir(3) of musl.

    The kernel sends READDIRPLUS at the start of a directory, and once after a lookup, and READDIR
    otherwise (fs/fuse/readdir.c). So the last of these three listings is certain to use READDIR.
    """
    found: dict[str, int] = {}
    with listing(directory) as descriptor:
        first, *_ = entries_of(descriptor)
        for start in (0, first.position, first.position):
            os.lseek(descriptor, start, os.SEEK_SET)
            found |= {entry.name: entry.inode for entry in entries_of(descriptor, BUFFER_BYTES)}
    return {name: number for name, number in found.items() if name not in {".", ".."}}


def after_forgetting(
    top: Path, read: Callable[[], dict[str, int]], before: dict[str, int]
) -> dict[str, int]:
    """Return the result of *read* after the kernel has dropped its inodes, in several tries."""
    for _ in range(FORGET_TRIES):
        forget(top)
        time.sleep(FORGET_S)  # FORGET has no answer to wait for
        if read() != before:
            break
    return read()


@large_numbers
def test_large_numbers_are_those_of_the_host(ground: Ground) -> None:
    """A file on the source's own device has the host's number: stat(2)."""
    right = numbers(ground.beneath / LOWER)
    assert len(right) == FILES
    assert min(right.values()) > LARGE

    assert numbers(ground.top / LOWER) == right


@large_numbers
def test_large_numbers_are_the_same_in_a_listing(ground: Ground) -> None:
    """A listing has the numbers that stat(2) gives: readdir(3)."""
    assert listed(ground.top / LISTED) == numbers(ground.top / LISTED)


@pytest.mark.columns("kernel-auto-overlay", "libfuse-auto-overlay")
def test_large_numbers_stay(ground: Ground) -> None:
    """A file keeps its number after the kernel has forgotten it."""
    before = numbers(ground.top / LOWER)

    assert after_forgetting(ground.top, lambda: numbers(ground.top / LOWER), before) == before


@two_disks
def test_equal_numbers_of_two_devices_differ_on_the_mount(ground: Ground) -> None:
    """Device and number together identify one file, as tar(1) expects: stat(2)."""
    first, second = (numbers(ground.beneath / name / LOWER) for name in SUBMOUNTS)
    assert first == second
    names = (*SUBMOUNTS, LARGE_SUBMOUNT)
    files = [path for name in names for path in (ground.top / name / LOWER).iterdir()]

    identities = {(path.stat().st_dev, path.stat().st_ino) for path in files}
    assert len(identities) == len(files) == len(names) * FILES


@two_disks
def test_numbers_of_submounts_are_the_same_in_a_listing(ground: Ground) -> None:
    """A listing in a submount has the numbers that stat(2) gives: readdir(3)."""
    for name in SUBMOUNTS:
        assert listed(ground.top / name / LISTED) == numbers(ground.top / name / LISTED)


@two_disks
def test_large_numbers_of_a_submount_are_the_same_in_a_listing(ground: Ground) -> None:
    """A listing in a submount has the numbers that stat(2) gives: readdir(3)."""
    directory = ground.top / LARGE_SUBMOUNT / LISTED

    assert listed(directory) == numbers(directory)


@pytest.mark.columns("kernel-auto-submounts", "libfuse-auto-submounts")
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(SUBMOUNTS, id="small"),
        pytest.param(
            (*SUBMOUNTS, LARGE_SUBMOUNT),
            id="large",
        ),
    ],
)
def test_numbers_of_submounts_stay(ground: Ground, names: tuple[str, ...]) -> None:
    """A file keeps its number, even if after a FORGET another device is read first."""
    order = list(names)

    def read() -> dict[str, int]:
        order.reverse()
        return {
            f"{name}/{file}": number
            for name in order
            for file, number in numbers(ground.top / name / LOWER).items()
        }

    before = read()
    assert after_forgetting(ground.top, read, before) == before


@pytest.mark.columns("kernel-auto-submounts", "libfuse-auto-submounts")
def test_a_mount_point_has_one_number(ground: Ground) -> None:
    """The volume has one st_dev, so d_ino of a mount point must be the mounted root's number."""
    assert listed(ground.top) == numbers(ground.top)

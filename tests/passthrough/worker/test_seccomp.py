"""seccomp.py: the verdict of each architecture's filter on each system call."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.worker import seccomp
from passthrough.worker.seccomp import (
    BY_FILE_HANDLE,
    BY_RING,
    CHECKED,
    MACHINES,
    MISSING,
    REFUSED,
    Numbers,
)
from tests.support.fakes.bpf import verdict

ALLOW, EPERM, ENOSYS = 0x7FFF_0000, 0x0005_0001, 0x0005_0026
OWN, OTHER, UPPER = 4711, 4712, 1 << 32
THREAD = 0x3D_0F00  # the flags of glibc, pthread_create(3)
CLONE_VM, SIGCHLD, CLONE_NEWNS, CLONE_NEWUSER, CLONE_PIDFD = 0x100, 17, 0x2_0000, 1 << 28, 0x1000
# Newer than the headers of Debian 12.
SINCE_6_8 = {"statmount": 457, "listmount": 458, "open_tree_attr": 467}
HEADERS = (
    Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    Path("/usr/include/asm-generic/unistd.h"),
)
EVERYTHING: dict[str, Numbers] = {
    **REFUSED,
    **BY_FILE_HANDLE,
    **BY_RING,
    **MISSING,
    **{name: check.numbers for name, check in CHECKED.items()},
}
# Call, arguments, verdict.
DECIDED = [
    ("ioctl", (3, seccomp.FS_IOC_SETFLAGS), ALLOW),
    ("ioctl", (3, seccomp.FUSE_DEV_IOC_BACKING_OPEN), ALLOW),
    ("ioctl", (3, seccomp.TCGETS | UPPER), ALLOW),
    ("ioctl", (3, 0xC004_5877), EPERM),
    ("ioctl", (3, 0xC004_5877 | UPPER), EPERM),
    ("ioctl", (seccomp.TCGETS, 0x541B), EPERM),
    ("fcntl", (3, 8, OTHER), EPERM),
    ("fcntl", (3, 8 | UPPER, OTHER), EPERM),
    ("fcntl", (3, 15, 0), EPERM),
    ("fcntl", (3, 4, os.O_NONBLOCK), ALLOW),
    ("clone", (THREAD,), ALLOW),
    ("clone", (THREAD | 0x40_0000,), ALLOW),  # musl
    ("clone", (THREAD | CLONE_NEWNS,), EPERM),
    ("clone", (THREAD | CLONE_PIDFD,), EPERM),
    ("clone", (SIGCHLD,), EPERM),
    ("clone", (0,), EPERM),
    ("clone", (CLONE_VM | SIGCHLD,), EPERM),
    ("clone", (CLONE_NEWUSER | SIGCHLD,), EPERM),
    ("clone3", (0, 88), ENOSYS),
    ("unshare", (0x200,), ALLOW),
    ("unshare", (0x200 | CLONE_NEWNS,), EPERM),
    ("unshare", (0,), EPERM),
    ("tgkill", (OWN, OWN, 6), ALLOW),
    ("tgkill", (OTHER, OTHER, 6), EPERM),
    ("tgkill", (OTHER | OWN << 32, OTHER, 6), EPERM),
    ("prlimit64", (0, 7), ALLOW),
    ("prlimit64", (OWN, 7), ALLOW),
    ("prlimit64", (OTHER, 7), EPERM),
    ("prlimit64", (OTHER << 32, 7), ALLOW),  # the kernel sees 0, itself
    ("sched_setaffinity", (0, 8), ALLOW),
    ("sched_setaffinity", (OTHER, 8), EPERM),
]


def answer(
    machine: str,
    name: str,
    arguments: tuple[int, ...] = (),
    *,
    by_file_handle: bool = False,
    by_ring: bool = False,
) -> int:
    """Return what the filter of *machine* answers to a call."""
    audit_arch, column = MACHINES[machine]
    number = EVERYTHING[name][column]
    assert number is not None
    rules = seccomp.program(machine, OWN, by_file_handle=by_file_handle, by_ring=by_ring)
    return verdict(rules, audit_arch, number, arguments)


def calls_of(machine: str, names: Iterator[str]) -> list[str]:
    """Return those of *names* that are calls of *machine*."""
    column = MACHINES[machine].column
    return [name for name in names if EVERYTHING[name][column] is not None]


@pytest.mark.parametrize("column", [0, 1])
def test_the_numbers_are_the_kernel_s(column: int) -> None:
    text = HEADERS[column].read_text()
    known = {
        name: int(number)
        for name, number in re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", text, re.MULTILINE)
    }

    assert {name: numbers[column] for name, numbers in EVERYTHING.items()} == {
        name: known.get(name, SINCE_6_8.get(name)) for name in EVERYTHING
    }


@pytest.mark.parametrize("machine", MACHINES)
def test_each_call_of_the_table_is_refused(machine: str) -> None:
    for table in (REFUSED, BY_FILE_HANDLE, BY_RING):
        names = calls_of(machine, iter(table))
        assert {name: answer(machine, name) for name in names} == dict.fromkeys(names, EPERM)


@pytest.mark.parametrize("machine", MACHINES)
def test_rings_and_handles_are_for_workers_that_need_them(machine: str) -> None:
    assert answer(machine, "open_by_handle_at", by_file_handle=True) == ALLOW
    assert answer(machine, "open_by_handle_at", by_ring=True) == EPERM
    for name in BY_RING:
        assert answer(machine, name, by_ring=True) == ALLOW
        assert answer(machine, name, by_file_handle=True) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("name", "arguments", "expected"), DECIDED)
def test_an_argument_decides_by_what_the_kernel_takes_of_it(
    machine: str, name: str, arguments: tuple[int, ...], expected: int
) -> None:
    assert answer(machine, name, arguments) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_that_no_table_has_is_let_through(machine: str) -> None:
    audit_arch, column = MACHINES[machine]
    numbers = {row[column] for row in EVERYTHING.values()}
    rules = seccomp.program(machine, OWN, by_file_handle=False, by_ring=False)

    assert {verdict(rules, audit_arch, one) for one in range(600) if one not in numbers} == {ALLOW}


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_abi_are_refused(machine: str) -> None:
    """The tables have neither 32-bit numbers nor, on x86_64, those of x32."""
    audit_arch = MACHINES[machine].audit_arch
    rules = seccomp.program(machine, OWN, by_file_handle=True, by_ring=True)
    audit_arch_32 = audit_arch & ~0x8000_0000

    assert verdict(rules, audit_arch_32, 1) == EPERM
    assert verdict(rules, audit_arch, 0x4000_0000) == EPERM
    assert verdict(rules, audit_arch, 0x4000_0000 | 520) == EPERM

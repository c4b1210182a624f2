"""seccomp.py: the verdict of each architecture's filter on each system call."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.worker import seccomp
from passthrough.worker.calls import (
    ALLOWED,
    BY_FILE_HANDLE,
    BY_GUARD,
    BY_RING,
    REFUSED,
    Numbers,
)
from passthrough.worker.seccomp import CHECKED, MACHINES
from tests.support.fakes.bpf import verdict

ALLOW, EPERM, ENOSYS = 0x7FFF_0000, 0x0005_0001, 0x0005_0026
OWN, OTHER, UPPER = 4711, 4712, 1 << 32
THREAD = 0x3D_0F00  # the flags of glibc, pthread_create(3)
CLONE_VM, SIGCHLD, CLONE_NEWNS, CLONE_NEWUSER, CLONE_PIDFD = 0x100, 17, 0x2_0000, 1 << 28, 0x1000
FOR_ONE_CALL = CLONE_VM | 0x4000 | 0x400  # and CLONE_VFORK | CLONE_FILES
OPEN_TREE_CLONE = 1
# Newer than the headers of Debian 12.
SINCE_6_6 = {
    "fchmodat2": 452,
    "statmount": 457,
    "listmount": 458,
    "getxattrat": 464,
    "listxattrat": 465,
    "open_tree_attr": 467,
}
# The number of such a call depends on the size of a word: the generic header has another name.
OF_WORD_SIZE = {"newfstatat": "fstatat"}
# Refused because the filter cannot read their flags, but as an older kernel would.
UNKNOWN: dict[str, Numbers] = {"clone3": (435, 435)}
HEADERS = (
    Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    Path("/usr/include/asm-generic/unistd.h"),
)
EVERYTHING: dict[str, Numbers] = {
    **ALLOWED,
    **REFUSED,
    **BY_FILE_HANDLE,
    **BY_RING,
    **BY_GUARD,
    **UNKNOWN,
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
    ("clone", (FOR_ONE_CALL,), ALLOW),
    ("clone", (FOR_ONE_CALL | SIGCHLD,), EPERM),
    ("clone", (FOR_ONE_CALL | CLONE_NEWUSER,), EPERM),
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
    ("open_tree", (3, 0, seccomp.OPEN_O_PATH), ALLOW),
    ("open_tree", (3, 0, seccomp.OPEN_O_PATH | OPEN_TREE_CLONE), EPERM),
    ("open_tree", (3, 0, OPEN_TREE_CLONE), EPERM),
    ("open_tree", (3, 0, 0), EPERM),
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
    by_guard: bool = False,
) -> int:
    """Return what the filter of *machine* answers to a call."""
    audit_arch, column = MACHINES[machine]
    number = EVERYTHING[name][column]
    assert number is not None
    rules = seccomp.program(
        machine, OWN, by_file_handle=by_file_handle, by_ring=by_ring, by_guard=by_guard
    )
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
        name: known.get(name, known.get(OF_WORD_SIZE.get(name, ""), SINCE_6_6.get(name)))
        for name in EVERYTHING
    }


def test_each_call_is_in_one_table() -> None:
    tables = (ALLOWED, REFUSED, BY_FILE_HANDLE, BY_RING, BY_GUARD, UNKNOWN, CHECKED)

    assert sum(map(len, tables)) == len(EVERYTHING)
    for column in (0, 1):
        numbers = [n for row in EVERYTHING.values() if (n := row[column]) is not None]
        assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("machine", MACHINES)
def test_each_call_of_the_table_is_refused(machine: str) -> None:
    for table in (REFUSED, BY_FILE_HANDLE, BY_RING, BY_GUARD):
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


# The calls of a guard, and what it may not do either. Call, arguments, verdict.
BY_GUARDS = [
    *((name, (), ALLOW) for name in BY_GUARD),
    ("clone", (0x400 | SIGCHLD,), ALLOW),
    ("clone", (THREAD,), ALLOW),
    ("clone", (THREAD | CLONE_NEWNS,), EPERM),
    ("clone", (FOR_ONE_CALL,), ALLOW),
    ("clone", (FOR_ONE_CALL | SIGCHLD,), EPERM),
    ("clone", (FOR_ONE_CALL | CLONE_NEWUSER,), EPERM),
    ("clone", (SIGCHLD,), EPERM),
    ("clone", (0x400,), EPERM),
    ("clone", (0x400 | CLONE_VM | SIGCHLD,), EPERM),
    ("clone", (0x400 | CLONE_NEWUSER | SIGCHLD,), EPERM),
    ("clone3", (0, 88), ENOSYS),
    ("open_tree", (3, 0, seccomp.OPEN_O_PATH), ALLOW),
    ("open_tree", (3, 0, seccomp.OPEN_O_PATH | OPEN_TREE_CLONE), ALLOW),
    ("open_tree", (3, 0, seccomp.OPEN_O_PATH | OPEN_TREE_CLONE | 0x8000), EPERM),
    ("tgkill", (OTHER, OTHER, 6), ALLOW),
    ("prlimit64", (OTHER, 7), ALLOW),
    ("ioctl", (3, 0x541B), EPERM),
    ("unshare", (CLONE_NEWNS,), EPERM),
    *((name, (), EPERM) for name in ("mount", "kill", "setns", "pidfd_getfd", "chroot", "socket")),
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("name", "arguments", "expected"), BY_GUARDS)
def test_a_guard_may_do_little_more(
    machine: str, name: str, arguments: tuple[int, ...], expected: int
) -> None:
    assert answer(machine, name, arguments, by_guard=True) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_each_call_of_the_list_is_allowed(machine: str) -> None:
    names = calls_of(machine, iter(ALLOWED))

    assert {name: answer(machine, name) for name in names} == dict.fromkeys(names, ALLOW)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_that_no_table_has_is_unknown(machine: str) -> None:
    audit_arch, column = MACHINES[machine]
    numbers = {row[column] for name, row in EVERYTHING.items() if name not in UNKNOWN}
    rules = seccomp.program(machine, OWN, by_file_handle=True, by_ring=True)
    unknown = {one for one in range(1000) if one not in numbers}

    assert {verdict(rules, audit_arch, one) for one in unknown} == {ENOSYS}
    assert verdict(rules, audit_arch, 0x3FFF_FFFF) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_abi_are_refused(machine: str) -> None:
    """The tables have neither 32-bit numbers nor, on x86_64, those of x32."""
    audit_arch = MACHINES[machine].audit_arch
    rules = seccomp.program(machine, OWN, by_file_handle=True, by_ring=True)
    audit_arch_32 = audit_arch & ~0x8000_0000

    assert verdict(rules, audit_arch_32, 1) == EPERM
    assert verdict(rules, audit_arch, 0x4000_0000) == EPERM
    assert verdict(rules, audit_arch, 0x4000_0000 | 520) == EPERM

"""The filter of a worker's system calls, a program for seccomp(2).

A worker keeps CAP_SYS_ADMIN for a few extended attributes, and that capability permits much more:
malicious code in the process could mount its way out of the sandbox. User id 0 permits more still,
without any capability: to signal other processes of root, and to change their limits. So the filter
allows the calls that a worker makes (calls.py), some by an argument. It refuses others by name,
with EPERM: mounts, namespaces, other programs, other processes, sockets, keys, settings of the
kernel itself, and files by other ways than the root directory.

All numbers that calls.py does not know get ENOSYS, as from an older kernel: the interpreter and the
C library then do without the call, or use another. One is clone3(2): its flags lie in memory, and
a filter cannot read memory. The C library starts threads by clone(2) instead, pthread_create(3).

A guard (standby.py) makes workers, so its filter allows a few calls more (`GUARDS`). Filters add
up: each fresh worker puts its own on top, and a call needs the consent of both.

The filter compares the low 32 bits of an argument: the kernel takes an int for each argument in
`CHECKED`. The kernel finds out once which calls the filter allows with all arguments, and runs it
for the other calls alone (seccomp_cache_prepare(), kernel/seccomp.c).
"""

import functools
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from passthrough.worker.calls import (
    ALLOWED,
    BY_FILE_HANDLE,
    BY_GUARD,
    BY_RING,
    REFUSED,
    Numbers,
)


class _Machine(NamedTuple):
    """The system call numbers of an architecture."""

    audit_arch: int
    """AUDIT_ARCH_*, linux/audit.h."""
    column: int
    """The index of its number in `Numbers`."""


_X86_64, _GENERIC = 0, 1
MACHINES: Final = {
    "x86_64": _Machine(0xC000_003E, _X86_64),
    "aarch64": _Machine(0xC000_00B7, _GENERIC),
    "riscv64": _Machine(0xC000_00F3, _GENERIC),
}


class Check(NamedTuple):
    """A system call that is allowed or refused by one of its arguments."""

    numbers: Numbers
    argument: int
    """The index of the argument, from 0."""
    allowed: frozenset[int] = frozenset()
    """The only values allowed, unless empty."""
    refused: frozenset[int] = frozenset()
    """The values refused; all others are allowed, unless there are bits."""
    bits: int = 0
    """The only bits allowed, unless 0; beside them the values of `allowed`."""
    needed: int = 0
    """The bit among `bits` that is required."""


_OWN_PROCESS: Final = 0xA5A5_5A5A
"""A stand-in for the process id of the worker; no other number in a filter has its bytes."""
_STAND_IN: Final = b"\x5a\x5a\xa5\xa5" if sys.byteorder == "little" else b"\xa5\xa5\x5a\x5a"

# sched.h: the flags of pthread_create(3) in glibc and musl, of which CLONE_THREAD makes a thread.
# unshare(2) may use CLONE_FS, for a thread's own working directory and umask.
CLONE_FS: Final = 0x200
CLONE_THREAD: Final = 0x1_0000
# CLONE_VM | CLONE_VFORK | CLONE_FILES: a process that makes one call for a thread (notify.pyx).
FOR_ONE_CALL: Final = 0x100 | 0x4000 | 0x400
# CLONE_FILES | SIGCHLD: a process that shares the table of descriptors, and nothing else.
SHARING_DESCRIPTORS: Final = 0x400 | 17
THREAD_FLAGS: Final = 0x7D_0F00
# fcntl(2): they set the process that gets the signals of a file.
F_SETOWN, F_SETOWN_EX = 8, 15
# ioctl(2): file flags; TCGETS, which Python's open() calls; the commands of /dev/fuse
# (linux/fuse.h).
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x8008_6601, 0x4008_6602
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C_581F, 0x401C_5820
TCGETS: Final = 0x5401
FUSE_DEV_IOC_CLONE: Final = 0x8004_E500
FUSE_DEV_IOC_BACKING_OPEN, FUSE_DEV_IOC_BACKING_CLOSE = 0x4010_E501, 0x4004_E502
IOCTLS: Final = frozenset(
    {
        *(FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, TCGETS),
        *(FUSE_DEV_IOC_CLONE, FUSE_DEV_IOC_BACKING_OPEN, FUSE_DEV_IOC_BACKING_CLOSE),
    }
)
# open_tree(2): AT_EMPTY_PATH | OPEN_TREE_CLOEXEC. Without OPEN_TREE_CLONE the call copies no mount,
# and opens what a descriptor leads to, as openat(2) does with O_PATH.
OPEN_O_PATH: Final = 0x1000 | 0x8_0000
OPEN_COPY: Final = OPEN_O_PATH | 1

CHECKED: Final[Mapping[str, Check]] = {
    "ioctl": Check((16, 29), 1, allowed=IOCTLS),
    "fcntl": Check((72, 25), 1, refused=frozenset({F_SETOWN, F_SETOWN_EX})),
    "clone": Check(
        *((56, 220), 0),
        allowed=frozenset({FOR_ONE_CALL}),
        bits=THREAD_FLAGS,
        needed=CLONE_THREAD,
    ),
    "unshare": Check((272, 97), 0, allowed=frozenset({CLONE_FS})),
    "tgkill": Check((234, 131), 0, allowed=frozenset({_OWN_PROCESS})),
    "prlimit64": Check((302, 261), 0, allowed=frozenset({0, _OWN_PROCESS})),
    "open_tree": Check((428, 428), 2, allowed=frozenset({OPEN_O_PATH})),
    "sched_setaffinity": Check((203, 122), 0, allowed=frozenset({0})),
}

# The rows of a guard in place of those above. It does not know the ids of its children beforehand.
GUARDS: Final[Mapping[str, Check]] = {
    "clone": Check(
        (56, 220),
        0,
        allowed=frozenset({FOR_ONE_CALL, SHARING_DESCRIPTORS}),
        bits=THREAD_FLAGS,
        needed=CLONE_THREAD,
    ),
    "open_tree": Check((428, 428), 2, allowed=frozenset({OPEN_O_PATH, OPEN_COPY})),
    "tgkill": Check((234, 131), 0),
    "prlimit64": Check((302, 261), 0),
}

# On x86_64 this bit marks the call numbers of the x32 ABI, which the tables do not have.
_X32_BIT: Final = 0x4000_0000
_INT_BITS: Final = 0xFFFF_FFFF

# linux/filter.h and linux/seccomp.h
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_GO: Final = 0x05
_ALLOW, _EPERM, _ENOSYS, _NEXT = "allow", "refuse", "missing", "next"
_VERDICTS: Final = {_ALLOW: 0x7FFF_0000, _EPERM: 0x0005_0001, _ENOSYS: 0x0005_0026}
# struct seccomp_data: the offsets of the call's number, the architecture and the first argument
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT, _ARGUMENT_BYTES = 0, 4, 16, 8


class _Instruction(NamedTuple):
    """A filter instruction; a test jumps to one of two labels, `_GO` to the first.

    An empty label stands for the next instruction. A label may be set several times: jumps lead
    forward, to the nearest.
    """

    code: int
    value: int
    if_true: str = ""
    if_false: str = ""


def program(
    machine: str, own_pid: int, *, by_file_handle: bool, by_ring: bool, by_guard: bool = False
) -> bytes:
    """Return the filter for *own_pid* as an array of struct sock_filter; *machine* as in uname(2).

    *by_file_handle* allows open_by_handle_at(2); *by_ring* allows io_uring(7); *by_guard* allows
    the calls of a guard.

    Raises:
        KeyError: *machine* is not in `MACHINES`.
    """
    template = _template(machine, by_file_handle, by_ring, by_guard)
    return template.replace(_STAND_IN, struct.pack("=I", own_pid))


@functools.cache
def _template(machine: str, by_file_handle: bool, by_ring: bool, by_guard: bool) -> bytes:
    """Return the filter with a stand-in for the process id; a guard's workers share the result."""
    audit_arch, column = MACHINES[machine]
    given = {_ALLOW: ALLOWED, _EPERM: REFUSED}
    for table, is_allowed in (
        (BY_FILE_HANDLE, by_file_handle),
        (BY_RING, by_ring),
        (BY_GUARD, by_guard),
    ):
        verdict = _ALLOW if is_allowed else _EPERM
        given[verdict] = given[verdict] | table
    parts: list[_Instruction | str] = [
        _Instruction(_LOAD, _ARCH_AT),
        _Instruction(_IF_EQUAL, audit_arch, if_false=_EPERM),
        _Instruction(_LOAD, _NUMBER_AT),
        _Instruction(_IF_AT_LEAST, _X32_BIT, _EPERM),
    ]
    for name, check in {**CHECKED, **(GUARDS if by_guard else {})}.items():
        if (number := check.numbers[column]) is not None:
            after = f"after {name}"
            parts += [
                _Instruction(_IF_EQUAL, number, if_false=after),
                *_check_argument(check),
                after,
            ]
    parts += _answers(_ALLOW, _EPERM)
    for verdict, table in given.items():
        numbers = sorted(n for row in table.values() if (n := row[column]) is not None)
        parts += [_Instruction(_IF_EQUAL, number, verdict) for number in numbers]
        parts += _answers(verdict)
    return _assemble([*parts, _Instruction(_RETURN, _VERDICTS[_ENOSYS])])


def _answers(*verdicts: str) -> Iterator[_Instruction | str]:
    """Yield the ends of jumps to *verdicts*: a test jumps over 255 instructions at most."""
    yield _Instruction(_GO, 0, _NEXT)
    for verdict in verdicts:
        yield verdict
        yield _Instruction(_RETURN, _VERDICTS[verdict])
    yield _NEXT


def _check_argument(check: Check) -> Iterator[_Instruction]:
    """Yield the instructions that allow or refuse a call by its argument, in every case."""
    yield _Instruction(_LOAD, _ARGUMENTS_AT + _ARGUMENT_BYTES * check.argument)
    for verdict, values in ((_ALLOW, check.allowed), (_EPERM, check.refused)):
        for value in sorted(values):
            yield _Instruction(_IF_EQUAL, value, verdict)
    if check.bits:
        yield _Instruction(_IF_ANY_BIT, _INT_BITS ^ check.bits, _EPERM)
        yield _Instruction(_IF_ANY_BIT, check.needed, _ALLOW, _EPERM)
    else:
        yield _Instruction(_GO, 0, _EPERM if check.allowed else _ALLOW)


def _assemble(parts: list[_Instruction | str]) -> bytes:
    """Return *parts* in the kernel's format; a string labels the instruction after it."""
    lines: list[bytes] = []
    distances: dict[str, int] = {"": 0}  # of each label from the last line, in instructions
    for part in reversed(parts):
        if isinstance(part, str):
            distances[part] = 0
            continue
        code, value, if_true, if_false = part
        if code == _GO:
            value, if_true = distances[if_true], ""
        lines.append(struct.pack("=HBBI", code, distances[if_true], distances[if_false], value))
        distances = {label: far + 1 if label else 0 for label, far in distances.items()}
    return b"".join(reversed(lines))

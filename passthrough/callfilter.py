"""Which system calls a worker may not make, as a program for seccomp(2).

A worker keeps CAP_SYS_ADMIN for the sake of a few extended attributes, and that capability opens
many other doors: with it, code that got hold of the process could mount its way out of the
sandbox. So those doors are closed one by one: mounts, namespaces, other programs, other processes.
They fail with EPERM. Everything else is let through: what the interpreter and the C library call
is theirs to choose, and the process's capabilities and its mount namespace bound what it does.
"""

import itertools
import struct
from typing import Final, NamedTuple


class _Machine(NamedTuple):
    """How an architecture calls the kernel."""

    audit_arch: int
    """AUDIT_ARCH_*, linux/audit.h."""
    column: int
    """Which of the numbers in `_REFUSED` is its own."""


_X86_64, _GENERIC = 0, 1
MACHINES: Final = {
    "x86_64": _Machine(0xC000_003E, _X86_64),
    "aarch64": _Machine(0xC000_00B7, _GENERIC),
    "riscv64": _Machine(0xC000_00F3, _GENERIC),
}

# The numbers on x86_64 (asm/unistd_64.h) and elsewhere (asm-generic/unistd.h).
REFUSED: Final = {
    # Mounts: the way back to the rest of the host.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # Other programs and other processes; a worker starts none and looks at none.
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "setns": (308, 268),
}
# Files by handle, which know no root directory: for workers that hold none.
BY_HANDLE: Final = {"open_by_handle_at": (304, 265)}
# A way to make calls that no filter sees: for workers whose requests come that way.
BY_RING: Final = {
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
# Allowed for one purpose only: a thread's own working directory and umask.
_UNSHARE: Final = (272, 97)
_CLONE_FS: Final = 0x200
# On x86_64, a bit that marks calls by the numbers of the x32 ABI, which no table here knows.
_X32_BIT: Final = 0x4000_0000

# linux/filter.h and linux/seccomp.h
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW: Final = 0x7FFF_0000
_EPERM: Final = 0x0005_0001
# struct seccomp_data: where the call's number, the architecture and the first argument lie
_NUMBER_AT, _ARCH_AT, _ARGUMENT_AT = 0, 4, 16


def program(machine: str, *, by_handle: bool, by_ring: bool) -> bytes:
    """The filter for *machine*, as uname(2) names it: struct sock_filter each.

    Files may be opened *by_handle*, or not; commands given *by_ring*, io_uring(7), or not.

    Raises:
        KeyError: *machine* is none of `MACHINES`.
    """
    audit_arch, column = MACHINES[machine]
    table = REFUSED | ({} if by_handle else BY_HANDLE) | ({} if by_ring else BY_RING)
    refused = sorted(numbers[column] for numbers in table.values())
    # (code, value, whether a match refuses, whether a mismatch refuses)
    tests: list[tuple[int, int, bool, bool]] = [
        (_LOAD, _ARCH_AT, False, False),
        (_IF_EQUAL, audit_arch, False, True),
        (_LOAD, _NUMBER_AT, False, False),
        (_IF_AT_LEAST, _X32_BIT, True, False),
        *((_IF_EQUAL, number, True, False) for number in refused),
    ]
    # A call that is not unshare(2) skips the look at its argument.
    end = [
        _instruction(_IF_EQUAL, _UNSHARE[column], 0, 2),
        _instruction(_LOAD, _ARGUMENT_AT),
        _instruction(_IF_EQUAL, _CLONE_FS, 0, 1),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _EPERM),
    ]
    lines = len(tests) + len(end)
    to_refusal = (lines - 1 - (index + 1) for index in itertools.count())
    start = [
        _instruction(code, value, far * hit, far * miss)
        for (code, value, hit, miss), far in zip(tests, to_refusal, strict=False)
    ]
    return b"".join(start + end)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)

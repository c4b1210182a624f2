"""The system calls that a worker must not make, as a filter program for seccomp(2).

A worker keeps CAP_SYS_ADMIN for a few extended attributes, and that capability permits much more:
malicious code in the process could mount its way out of the sandbox. User id 0 permits more still,
without any capability: to signal other processes of root, and to change their limits. So the filter
refuses each such system call with EPERM: mounts, namespaces, other programs, other processes,
sockets, keys, settings of the kernel itself, and files by other ways than the root directory. It
allows all other calls, because the interpreter and the C library choose theirs. The capabilities
and the mount namespace of the process limit their effect.

The filter compares the low 32 bits of an argument: the kernel takes an int for each argument in
`CHECKED`. A filter cannot read memory behind a pointer, where clone3(2) has its flags. So clone3(2)
fails with ENOSYS, and the C library starts threads by clone(2) instead, pthread_create(3).
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple


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

Numbers = tuple[int | None, int | None]
"""A call's numbers on x86_64 (asm/unistd_64.h) and elsewhere (asm-generic/unistd.h), if any."""

REFUSED: Final[dict[str, Numbers]] = {
    # Mounts: they lead back to the rest of the host.
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
    "statmount": (457, 457),
    "listmount": (458, 458),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # fanotify events have descriptors of files outside of the root directory.
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    # Other programs and other processes: a worker starts none and inspects none.
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "get_robust_list": (274, 100),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "setns": (308, 268),
    # Signals to other processes, and their scheduling: the kernel checks only the user id.
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    # The network: a socket file in the source may belong to a service of the host.
    "socket": (41, 198),
    # The kernel itself.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "syslog": (103, 116),
    "lookup_dcookie": (212, 18),
    "acct": (163, 89),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "uselib": (134, None),
    "modify_ldt": (154, None),
    "ioperm": (173, None),
    "iopl": (172, None),
}
# Refused to workers without file handles, because the call ignores the root directory.
BY_FILE_HANDLE: Final[dict[str, Numbers]] = {"open_by_handle_at": (304, 265)}
# Refused to workers without io_uring, because no filter sees a ring's commands.
BY_RING: Final[dict[str, Numbers]] = {
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
# Answered with ENOSYS: no filter can check the argument, and callers can use another call.
MISSING: Final[dict[str, Numbers]] = {"clone3": (435, 435)}


class Check(NamedTuple):
    """A system call that is allowed or refused by one of its arguments."""

    numbers: Numbers
    argument: int
    """The index of the argument, from 0."""
    allowed: frozenset[int] = frozenset()
    """The only values allowed, unless empty."""
    refused: frozenset[int] = frozenset()
    """The values refused; all others are allowed."""
    bits: int = 0
    """The only bits allowed, unless 0."""
    needed: int = 0
    """The bit among `bits` that is required."""


_OWN_PROCESS: Final = -1
"""A stand-in for the process id of the worker."""

# sched.h: the flags of pthread_create(3) in glibc and musl, of which CLONE_THREAD makes a thread.
# unshare(2) may use CLONE_FS, for a thread's own working directory and umask.
CLONE_FS: Final = 0x200
CLONE_THREAD: Final = 0x1_0000
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

CHECKED: Final[Mapping[str, Check]] = {
    "ioctl": Check((16, 29), 1, allowed=IOCTLS),
    "fcntl": Check((72, 25), 1, refused=frozenset({F_SETOWN, F_SETOWN_EX})),
    "clone": Check((56, 220), 0, bits=THREAD_FLAGS, needed=CLONE_THREAD),
    "unshare": Check((272, 97), 0, allowed=frozenset({CLONE_FS})),
    "tgkill": Check((234, 131), 0, allowed=frozenset({_OWN_PROCESS})),
    "prlimit64": Check((302, 261), 0, allowed=frozenset({0, _OWN_PROCESS})),
    "sched_setaffinity": Check((203, 122), 0, allowed=frozenset({0})),
}

# On x86_64 this bit marks the call numbers of the x32 ABI, which the tables do not have.
_X32_BIT: Final = 0x4000_0000
_INT_BITS: Final = 0xFFFF_FFFF

# linux/filter.h and linux/seccomp.h
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _EPERM, _ENOSYS = "allow", "refuse", "missing"
_VERDICTS: Final = {_ALLOW: 0x7FFF_0000, _EPERM: 0x0005_0001, _ENOSYS: 0x0005_0026}
# struct seccomp_data: the offsets of the call's number, the architecture and the first argument
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT, _ARGUMENT_BYTES = 0, 4, 16, 8


class _Instruction(NamedTuple):
    """A filter instruction; a test jumps to one of two labels.

    An empty label stands for the next instruction.
    """

    code: int
    value: int
    if_true: str = ""
    if_false: str = ""


def program(machine: str, own_pid: int, *, by_file_handle: bool, by_ring: bool) -> bytes:
    """Return the filter for *own_pid* as an array of struct sock_filter; *machine* as in uname(2).

    *by_file_handle* allows open_by_handle_at(2); *by_ring* allows io_uring(7).

    Raises:
        KeyError: *machine* is not in `MACHINES`.
    """
    audit_arch, column = MACHINES[machine]
    refused = REFUSED | ({} if by_file_handle else BY_FILE_HANDLE) | ({} if by_ring else BY_RING)
    parts: list[_Instruction | str] = [
        _Instruction(_LOAD, _ARCH_AT),
        _Instruction(_IF_EQUAL, audit_arch, if_false=_EPERM),
        _Instruction(_LOAD, _NUMBER_AT),
        _Instruction(_IF_AT_LEAST, _X32_BIT, _EPERM),
    ]
    for name, check in CHECKED.items():
        if (number := check.numbers[column]) is not None:
            after = f"after {name}"
            parts += [
                _Instruction(_IF_EQUAL, number, if_false=after),
                *_check_argument(check, own_pid),
                after,
            ]
    for table, verdict in ((MISSING, _ENOSYS), (refused, _EPERM)):
        numbers = sorted(n for row in table.values() if (n := row[column]) is not None)
        parts += [_Instruction(_IF_EQUAL, number, verdict) for number in numbers]
    for verdict, value in _VERDICTS.items():  # the first applies if no test has jumped
        parts += [verdict, _Instruction(_RETURN, value)]
    return _assemble(parts)


def _check_argument(check: Check, own_pid: int) -> Iterator[_Instruction]:
    """Yield the instructions that allow or refuse a call by its argument, in every case."""
    own = {_OWN_PROCESS: own_pid}
    yield _Instruction(_LOAD, _ARGUMENTS_AT + _ARGUMENT_BYTES * check.argument)
    if check.allowed:
        *others, last = sorted(own.get(value, value) for value in check.allowed)
        yield from (_Instruction(_IF_EQUAL, value, _ALLOW) for value in others)
        yield _Instruction(_IF_EQUAL, last, _ALLOW, _EPERM)
    elif check.refused:
        *others, last = sorted(check.refused)
        yield from (_Instruction(_IF_EQUAL, value, _EPERM) for value in others)
        yield _Instruction(_IF_EQUAL, last, _EPERM, _ALLOW)
    else:
        yield _Instruction(_IF_ANY_BIT, _INT_BITS ^ check.bits, _EPERM)
        yield _Instruction(_IF_ANY_BIT, check.needed, _ALLOW, _EPERM)


def _assemble(parts: list[_Instruction | str]) -> bytes:
    """Return *parts* in the kernel's format; a string labels the instruction after it."""
    labels: dict[str, int] = {}
    instructions: list[_Instruction] = []
    for part in parts:
        if isinstance(part, str):
            labels[part] = len(instructions)
        else:
            instructions.append(part)

    def skipped(at: int, label: str) -> int:
        return labels[label] - at - 1 if label else 0

    return b"".join(
        struct.pack("=HBBI", code, skipped(at, if_true), skipped(at, if_false), value)
        for at, (code, value, if_true, if_false) in enumerate(instructions)
    )

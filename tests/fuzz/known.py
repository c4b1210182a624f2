"""The allowed differences of a mount from a bare directory, each with its reason and its proof.

The proof is a program after which the two sides differ. If they no longer differ, test_comparison
fails, and the entry must be removed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.fuzz.mounts import Options, Variant
from tests.fuzz.operations import Outcome
from tests.support.tools.callers import TEAM_GID

_LIBFUSE = Variant({"session": "libfuse"})
_PASSED = Variant({"session": "kernel", "passthrough": "on"})
_NO_XATTR = Variant({"xattr": "false"}, "ramfs")


@dataclass(frozen=True, slots=True)
class Difference:
    """One operation with another outcome on the mount than on the bare directory."""

    operation: str
    reason: str
    outcome: str
    """The outcome on the mount: an errno's name, or "ok"."""
    program: Sequence[tuple[object, ...]]
    variant: Variant = _LIBFUSE
    """The entry applies to all mounts with these options."""

    def applies(self, options: Options) -> bool:
        """Return whether the entry applies to a mount with *options*."""
        return self.variant.options.items() <= options.items()

    def explains(self, step: tuple[object, ...], outcome: Outcome) -> bool:
        """Return whether the entry allows this *outcome* of *step* on the mount."""
        return step[1] == self.operation and outcome[0] == self.outcome


_OPEN = ("user", "open", 0, b"a", 0o2, 0)

DIFFERENCES = (
    Difference(
        "tmpfile",
        "pyfuse3 has no handler for FUSE_TMPFILE",
        "ENOTSUP",
        [("user", "tmpfile", b"d")],
    ),
    Difference(
        "fallocate",
        "pyfuse3 has no handler for FUSE_FALLOCATE",
        "ENOTSUP",
        [("user", "fallocate", b"d")],
    ),
    Difference(
        "seek_hole",
        "pyfuse3 has no handler for FUSE_LSEEK: the kernel reports no hole before the file's end",
        "ok",
        [_OPEN, ("user", "ftruncate", 0, 100_000), ("user", "seek_hole", 0, 0)],
    ),
    Difference(
        "ioctl",
        "pyfuse3 has no handler for FUSE_IOCTL",
        "ENOTTY",
        [_OPEN, ("user", "ioctl", 0)],
    ),
    Difference(
        "listxattr",
        "on a FUSE mount without extended attributes the kernel itself answers, with an error and "
        "not with an empty list",
        "ENOTSUP",
        [("user", "listxattr", b"a", True)],
        _NO_XATTR,
    ),
)


class Avoided(NamedTuple):
    """An operation that random programs leave out, because the trees would differ from then on."""

    reason: str
    program: Sequence[tuple[object, ...]]
    variant: Variant = _LIBFUSE


AVOIDED = {
    "mapped store while a file is open with O_APPEND": Avoided(
        "the host's file is open with O_APPEND, because processes of the host may append too, and "
        "pyfuse3 does not tell writes of mapped pages from others",
        [("user", "open", 0, b"a", 0o2002, 0), ("user", "mapped_write", 0, 9, 1, 0)],
    ),
    "O_APPEND cleared on an open file": Avoided(
        "the host's file is open with O_APPEND, and pyfuse3 does not pass the current flags of a "
        "file",
        [
            ("user", "open", 0, b"a", 0o2002, 0),
            ("user", "clear_append", 0),
            ("user", "pwrite", 0, 9, 1, 0),
        ],
    ),
    "O_APPEND cleared on a file with kernel passthrough": Avoided(
        "the kernel opens the host's file with the flags of open(2); it adds flags that fcntl(2) "
        "sets later, but does not clear any",
        [
            ("user", "open", 0, b"b", 0o2102, 0o666),
            ("user", "write", 0, 8, 2),
            ("user", "clear_append", 0),
            ("user", "pwrite", 0, 9, 1, 0),
        ],
        _PASSED,
    ),
    "copy of bytes that the host has just appended": Avoided(
        "copy_file_range(2) never asks a FUSE file system for the size: the kernel uses the size "
        "in its cache",
        [
            ("user", "open", 0, b"a", 0, 0),
            ("user", "open", 1, b"b", 0o102, 0o666),
            ("host", "append", b"a", 1, 1_000),
            ("user", "copy_range", 0, 1, 6_000),
        ],
    ),
    "setgid of a file that its group may not execute": Avoided(
        "a request does not have the supplementary groups: if the kernel does not decide, a change "
        "clears the bit, unless the caller is the owner or the group is the caller's primary one",
        [
            ("root", "chown", b"a", 0, TEAM_GID, True),
            ("root", "chmod", b"a", 0o2666),
            ("member", "truncate", b"a", 1),
        ],
    ),
    "chown(2) without ids by a user that is not the owner": Avoided(
        "with HANDLE_KILLPRIV_V2 the kernel leaves the check to the file system, and sends the "
        "same request before a write: so the call has no effect, but is not refused",
        [("member", "chown", b"a", -1, -1, True)],
        Variant({"session": "kernel"}),
    ),
}

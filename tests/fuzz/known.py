"""Where a mount may differ from a bare directory, each with its reason and with the proof.

The proof is a program after which the two sides differ: when they no longer do, the test that goes
with these tables fails, and the entry has to go.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.fuzz.hands import Outcome
from tests.fuzz.mounts import Options, Ways
from tests.support.tools.callers import TEAM_GID

_LIBFUSE = Ways({"session": "libfuse"})
_PASSED = Ways({"session": "kernel", "passthrough": "on"})
_NO_XATTR = Ways({"xattr": "false"}, "ramfs")


@dataclass(frozen=True, slots=True)
class Difference:
    """One operation whose outcome on the mount need not be that of the bare directory."""

    operation: str
    reason: str
    outcome: str
    """What comes back from the mount: the name of an error, or "ok"."""
    program: Sequence[tuple[object, ...]]
    ways: Ways = _LIBFUSE
    """Where: mounts with these options, whatever else they have."""

    def applies(self, options: Options) -> bool:
        """Whether a mount with *options* may differ so."""
        return self.ways.options.items() <= options.items()

    def explains(self, step: tuple[object, ...], outcome: Outcome) -> bool:
        """Whether this is why *step* had another outcome on the mount."""
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
        "seek_data",
        "pyfuse3 has no handler for FUSE_LSEEK: the kernel takes the whole file for data",
        "ok",
        [_OPEN, ("user", "ftruncate", 0, 100_000), ("user", "seek_data", 0, 0)],
    ),
    Difference(
        "ioctl",
        "pyfuse3 has no handler for FUSE_IOCTL",
        "ENOTTY",
        [_OPEN, ("user", "ioctl", 0)],
    ),
    Difference(
        "listxattr",
        "the kernel answers for a FUSE mount without attributes, and gives no empty list",
        "ENOTSUP",
        [("user", "listxattr", b"a", True)],
        _NO_XATTR,
    ),
)


class Avoided(NamedTuple):
    """What random programs do not do, because the trees would differ ever after."""

    reason: str
    program: Sequence[tuple[object, ...]]
    ways: Ways = _LIBFUSE


AVOIDED = {
    "mapped store while a file is open to append": Avoided(
        "the host's file is open to append, for the sake of others that append on the host, and "
        "pyfuse3 does not say which write is of a mapped page",
        [("user", "open", 0, b"a", 0o2002, 0), ("user", "mapped_write", 0, 9, 1, 0)],
    ),
    "O_APPEND taken off an open file": Avoided(
        "for the same reason, and pyfuse3 does not pass the flags that a file has by now",
        [
            ("user", "open", 0, b"a", 0o2002, 0),
            ("user", "clear_append", 0),
            ("user", "pwrite", 0, 9, 1, 0),
        ],
    ),
    "O_APPEND taken off a file that the kernel passes through to": Avoided(
        "the kernel opens the host's file with the flags of open(2); what fcntl(2) sets later is "
        "added to them, but nothing is taken away",
        [
            ("user", "open", 0, b"b", 0o2102, 0o666),
            ("user", "write", 0, 8, 2),
            ("user", "clear_append", 0),
            ("user", "pwrite", 0, 9, 1, 0),
        ],
        _PASSED,
    ),
    "copy of what the host has just appended": Avoided(
        "copy_file_range(2) never asks a FUSE file system for the size: the kernel goes by the one "
        "that it knows",
        [
            ("user", "open", 0, b"a", 0, 0),
            ("user", "open", 1, b"b", 0o102, 0o666),
            ("host", "append", b"a", 1, 1_000),
            ("user", "copy_range", 0, 1, 6_000),
        ],
    ),
    "setgid of a file that its group may not execute": Avoided(
        "a request does not name supplementary groups: where the kernel does not decide, the bit "
        "goes with a change by a member who is neither the owner nor of the group by the primary "
        "one",
        [
            ("root", "chown", b"a", 0, TEAM_GID, True),
            ("root", "chmod", b"a", 0o2666),
            ("member", "truncate", b"a", 1),
        ],
    ),
    "chown(2) without an owner by somebody else": Avoided(
        "with HANDLE_KILLPRIV_V2 the kernel leaves it to the file system, and sends the same "
        "before a write: so it has no effect, but is not refused either",
        [("member", "chown", b"a", -1, -1, True)],
        Ways({"session": "kernel"}),
    ),
}

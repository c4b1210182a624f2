"""Where a mount may differ from a bare directory, each with its reason and with the proof.

The proof is a program at whose last step the two sides differ: one that no longer does fails the
test that goes with this table, and then the entry has to go.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.fuzz.hands import Outcome


@dataclass(frozen=True, slots=True)
class Difference:
    """One operation whose outcome on the mount need not be that of the bare directory."""

    operation: str
    reason: str
    outcome: str
    """What comes back from the mount: the name of an error, or "ok"."""
    program: Sequence[tuple[object, ...]]

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
        [_OPEN, ("user", "fallocate", 0, 0, 4_096)],
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
        "mapped_write_appending",
        "the host's file is open to append, for the sake of others that append on the host, and "
        "pyfuse3 does not say which write is of a mapped page",
        "ok",
        [("user", "mapped_write_appending", b"a")],
    ),
    Difference(
        "write_unappended",
        "as above: nor does pyfuse3 say that O_APPEND has been taken off since the file was opened",
        "ok",
        [("user", "open", 0, b"a", 0o2002, 0), ("user", "write_unappended", 0, 9)],
    ),
)

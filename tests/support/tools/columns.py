"""The columns of the battery in tests/posix: bare directories, and mounts by each session."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.tools.callers import MEMBER, ROOT, USER, Caller
from tests.support.tools.mounted import Mounted

FEW_DESCRIPTORS = 256


@dataclass(frozen=True, slots=True)
class Place:
    """One column of the battery: a session with a cache policy, or a bare directory; a caller.

    *handles* is the option inode_file_handles. *passthrough* and *transport* are the options of
    these names; with passthrough=auto, `kernel` passes files through with every policy but
    `metadata`. *disk* is the file system of the source (support/tools/disks.py). *descriptors* is
    the limit of open descriptors of the mount's process. *more* has further options, and the name
    that they have in the test's id.
    """

    session: str | None
    policy: str
    caller: Caller
    large: bool = True
    handles: str = "prefer"
    passthrough: str = "auto"
    transport: str = "auto"
    disk: str = ""
    descriptors: int | None = None
    more: tuple[str, tuple[tuple[str, str], ...]] = ("", ())

    @property
    def id(self) -> str:
        """Return the name of the column in the test's id."""
        where = "control" if self.session is None else f"{self.session}-{self.policy}"
        if self.handles != "prefer":
            where += f"-handles-{self.handles}"
        if self.passthrough != "auto":
            where += f"-passthrough-{self.passthrough}"
        if self.transport != "auto":
            where += f"-{self.transport}"
        if self.descriptors is not None:
            where += "-few-descriptors"
        for name in filter(None, (self.more[0], self.disk)):
            where += f"-{name}"
        return where if self.caller is ROOT else f"{where}-{self.caller.name}"


PLACES = [
    Place(None, "", ROOT),
    Place(None, "", USER, large=False),
    Place(None, "", MEMBER, large=False),
    *(
        place
        for session in ("kernel", "libfuse")
        for place in (
            Place(session, "auto", ROOT),
            Place(session, "auto", USER, large=False),
            Place(session, "auto", MEMBER, large=False),
            Place(session, "always", ROOT),
            Place(session, "never", ROOT, large=False),
            Place(session, "metadata", ROOT, large=False),
            Place(session, "auto", ROOT, large=False, handles="mandatory"),
        )
    ),
    Place("kernel", "auto", ROOT, passthrough="off"),
    Place("kernel", "always", ROOT, passthrough="off"),
    Place("kernel", "never", ROOT, large=False, passthrough="off"),
    Place("kernel", "auto", USER, large=False, passthrough="off"),
    Place("kernel", "auto", ROOT, passthrough="off", transport="io_uring"),
]

# Columns that only tests with the mark `columns` run on.
ON_DEMAND = [
    *(
        Place(session, policy, ROOT, disk=disk)
        for disk in ("ext4", "overlay", "submounts")
        for session, policy in ((None, ""), ("kernel", "auto"), ("libfuse", "auto"))
    ),
    Place("kernel", "auto", ROOT, passthrough="off", disk="ext4"),
    Place("kernel", "auto", ROOT, descriptors=FEW_DESCRIPTORS),
    Place("libfuse", "auto", ROOT, descriptors=FEW_DESCRIPTORS),
    # Own mounts: on the shared ones, earlier tests may have left inodes held by file handle.
    *(
        Place(session, policy, ROOT, more=("fresh", ()))
        for session in ("kernel", "libfuse")
        for policy in ("auto", "always")
    ),
    Place("kernel", "auto", ROOT, more=("writeback", (("writeback", "true"),))),
    Place("kernel", "auto", ROOT, more=("mapped", (("map_uid", "0:0:100000"),))),
]
BY_ID = {place.id: place for place in (*PLACES, *ON_DEMAND)}
QUICK = BY_ID["kernel-auto"]
"""The column that `make quick` runs; the tests on all others have the mark `full`."""


@dataclass(slots=True)
class Ground:
    """A place that exists: tests get new directories in *top*, which the host has in *beneath*."""

    place: Place
    top: Path
    beneath: Path
    mount: Mounted | None = None
    numbers: Iterator[int] = field(default_factory=itertools.count)

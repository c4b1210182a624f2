"""The columns of the battery in tests/posix: bare directories, and mounts by each session.

The battery is all tests of tests/posix.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.tools.callers import MEMBER, ROOT, USER, Caller
from tests.support.tools.mounted import Mounted

FEW_DESCRIPTORS = 256


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the battery: a caller, and a bare directory or a mount with its options.

    *large* is False for a column that leaves out the tests with the mark `large`. *file_handles* is
    the option inode_file_handles. *passthrough* and *transport* are the options of these names;
    with passthrough=auto, `kernel` passes files through with every policy but `metadata`. *disk* is
    the file system of the source (support/tools/disks.py). *descriptors* is the limit of open
    descriptors of the mount's process. *more* has further options, and the name that they have in
    the test's id.
    """

    session: str | None
    policy: str
    caller: Caller
    large: bool = True
    file_handles: str = "prefer"
    passthrough: str = "auto"
    transport: str = "auto"
    disk: str = ""
    descriptors: int | None = None
    more: tuple[str, tuple[tuple[str, str], ...]] = ("", ())

    @property
    def id(self) -> str:
        """Return the name of the column in the test's id."""
        where = "control" if self.session is None else f"{self.session}-{self.policy}"
        if self.file_handles != "prefer":
            where += f"-handles-{self.file_handles}"
        if self.passthrough != "auto":
            where += f"-passthrough-{self.passthrough}"
        if self.transport != "auto":
            where += f"-{self.transport}"
        if self.descriptors is not None:
            where += "-few-descriptors"
        for name in filter(None, (self.more[0], self.disk)):
            where += f"-{name}"
        return where if self.caller is ROOT else f"{where}-{self.caller.name}"


COLUMNS = [
    Column(None, "", ROOT),
    Column(None, "", USER, large=False),
    Column(None, "", MEMBER, large=False),
    *(
        column
        for session in ("kernel", "libfuse")
        for column in (
            Column(session, "auto", ROOT),
            Column(session, "auto", USER, large=False),
            Column(session, "auto", MEMBER, large=False),
            Column(session, "always", ROOT),
            Column(session, "never", ROOT, large=False),
            Column(session, "metadata", ROOT, large=False),
            Column(session, "auto", ROOT, large=False, file_handles="mandatory"),
        )
    ),
    Column("kernel", "auto", ROOT, passthrough="off"),
    Column("kernel", "always", ROOT, passthrough="off"),
    Column("kernel", "never", ROOT, large=False, passthrough="off"),
    Column("kernel", "auto", USER, large=False, passthrough="off"),
    Column("kernel", "auto", ROOT, passthrough="off", transport="io_uring"),
]

# Columns that only tests with the mark `columns` run on.
ON_DEMAND = [
    *(
        Column(session, policy, ROOT, disk=disk)
        for disk in ("ext4", "overlay", "submounts")
        for session, policy in ((None, ""), ("kernel", "auto"), ("libfuse", "auto"))
    ),
    Column("kernel", "auto", ROOT, passthrough="off", disk="ext4"),
    Column(None, "", ROOT, disk="without-acls"),
    Column("kernel", "auto", ROOT, disk="without-acls"),
    Column("kernel", "auto", ROOT, descriptors=FEW_DESCRIPTORS),
    Column("libfuse", "auto", ROOT, descriptors=FEW_DESCRIPTORS),
    # Own mounts: on the shared ones, earlier tests may have left inodes held by file handle.
    *(
        Column(session, policy, ROOT, more=("fresh", ()))
        for session in ("kernel", "libfuse")
        for policy in ("auto", "always")
    ),
    Column("kernel", "auto", ROOT, more=("writeback", (("writeback", "true"),))),
    Column("kernel", "auto", ROOT, more=("mapped", (("map_uid", "0:0:100000"),))),
]
BY_ID = {column.id: column for column in (*COLUMNS, *ON_DEMAND)}
QUICK = BY_ID["kernel-auto"]
"""The column that `make quick` runs; the tests on all others have the mark `full`."""


@dataclass(slots=True)
class Ground:
    """The directory or mount of a column: tests get new directories in *top*.

    The host has them in *beneath*.
    """

    column: Column
    top: Path
    beneath: Path
    mount: Mounted | None = None
    numbers: Iterator[int] = field(default_factory=itertools.count)

"""Random programs: the operations that hypothesis chooses from, with their arguments.

The tables have a row for each operation, which becomes a rule. There are few names, so that
operations hit the same files. A name may be a file, a directory, a link or absent.
"""

import math
import os
import stat
import time
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
)

from tests.fuzz import calls
from tests.fuzz.differential import CALLERS, HOST, Sides
from tests.support.tools.callers import MEMBER, TEAM_GID, USER

Strategy = st.SearchStrategy[Any]
Descriptor = tuple[str, int]
"""The caller that opened it, and its number."""

LONGEST = b"n" * 255
NOT_UTF8 = b"\xff\xfe"
COMPARE_EACH = 8  # steps; a comparison takes as long as dozens of steps
MOST_FILLED = 2
NAMES = [b"a", b"a", b"b", b"c", b"d", b"l", b"s", b"t"]
RARE_NAMES = [NOT_UTF8, "ü".encode(), LONGEST, LONGEST + b"n", b".", b"..", b"a/", b"d/", b"/", b""]

name = st.sampled_from(NAMES * 3 + RARE_NAMES)
path = st.one_of(
    name, name, st.builds(b"%s/%s".__mod__, st.tuples(st.sampled_from([b"d", b"s", b"t"]), name))
)
directory = st.sampled_from([b".", b"d", b"s", b"t", b"b", b"l", b"d/d"])
# Setgid comes only with execution by the group (known.py), which the umask of a new file may clear.
modes = st.sampled_from([0o644, 0o666, 0o755, 0o777, 0, 0o444, 0o6777, 0o4766])
modes |= st.integers(0, 0o7777)
mode = modes.map(lambda bits: bits & ~stat.S_ISGID)
changed_mode = modes.map(lambda bits: bits | (stat.S_IXGRP if bits & stat.S_ISGID else 0))
uid = st.sampled_from([-1, 0, USER.uid, MEMBER.uid])
gid = st.sampled_from([-1, 0, USER.gid, MEMBER.gid, TEAM_GID])
size = st.sampled_from([0, 1, 100, 4_095, 4_096, 4_097, 70_000, 150_000])
offset = st.sampled_from([0, 1, 10, 4_095, 4_096, 5_000, 70_000])
seed = st.integers(0, 200)
follow = st.booleans()
times = st.sampled_from(
    [
        *(calls.UTIME_OMIT, calls.UTIME_NOW, 0, 1, -2 * calls.NS_PER_S + 5),
        *(1_000_000_000_123_456_789, 4_102_444_800 * calls.NS_PER_S + 1),
    ]
)
attribute = st.sampled_from(
    [
        *(b"user.a", b"user.a", b"user.b", b"user." + NOT_UTF8, b"user." + LONGEST[:250], b"user."),
        *(b"trusted.t", b"security.s", b"nonsense"),
    ]
)
value = st.sampled_from([b"", b"v", b"\0\xff", b"w" * 200, b"x" * 3_000])
attribute_flags = st.sampled_from([0, os.XATTR_CREATE, os.XATTR_REPLACE])
open_flags = st.builds(
    lambda access, others: access | sum(others),
    st.sampled_from([os.O_RDWR, os.O_RDWR, os.O_WRONLY, os.O_RDONLY]),
    st.sets(
        st.sampled_from(
            [
                *[os.O_CREAT, os.O_TRUNC, os.O_APPEND] * 3,
                *(os.O_EXCL, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_SYNC, os.O_NOATIME, os.O_PATH),
            ]
        ),
        max_size=3,
    ),
)
file = st.sampled_from([b"a", b"b", b"c", b"d/b", b"t/c"])
file_flags = st.sampled_from([0, os.O_CREAT, os.O_CREAT | os.O_TRUNC, os.O_TRUNC, os.O_APPEND])
file_flags = file_flags.map(lambda flags: os.O_RDWR | flags)
rename_flags = st.sampled_from([0, 0, 0, 1, 2, 4, 5, 6, 8])
nodes = st.sampled_from([stat.S_IFREG, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR])
target = st.sampled_from(
    [b"a", b"d", b"d/b", b"../a", b"l", b"nowhere", b"/", b"..", LONGEST, b"long/" * 200]
)

# Without ids only root calls chown(2), in `chown_without_ids`: known.py has the reason.
owners = st.tuples(uid, gid).filter(lambda ids: ids != (-1, -1))

ON_PATHS: dict[str, tuple[Strategy, ...]] = {
    "mkdir": (path, mode),
    "rmdir": (path,),
    "unlink": (path,),
    "rename": (path, path, rename_flags),
    "link": (path, path, follow),
    "symlink": (target, path),
    "readlink": (path,),
    "mknod": (path, st.builds(int.__or__, nodes, mode), st.sampled_from([0, 0x103])),
    "chmod": (path, changed_mode),
    "truncate": (path, size),
    "utimens": (path, times, times, follow),
    "stat": (path,),
    "lstat": (path,),
    "access": (path, st.integers(0, 7), follow),
    "listdir": (path,),
    "setxattr": (path, attribute, value, attribute_flags, follow),
    "getxattr": (path, attribute, follow),
    "listxattr": (path, follow),
    "removexattr": (path, attribute, follow),
    "fallocate": (directory,),
    "tmpfile": (directory,),
    "umask": (st.sampled_from([0, 0o022, 0o027, 0o077]),),
}

ON_FILES: dict[str, tuple[Strategy, ...]] = {
    "read": (size,),
    "pread": (size, offset),
    "write": (seed, size),
    "pwrite": (seed, size, offset),
    "lseek": (st.integers(-10, 5_000), st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])),
    "ftruncate": (size,),
    "mapped_read": (),
    "set_append": (),
}

ON_DESCRIPTORS: dict[str, tuple[Strategy, ...]] = {
    "fsync": (),
    "fdatasync": (),
    "fstat": (),
    "fchmod": (changed_mode,),
    "futimens": (times, times),
    "fsetxattr": (attribute, value, attribute_flags),
    "fgetxattr": (attribute,),
    "flags": (),
    "seek_hole": (offset,),
    "ioctl": (),
    "relist": (),
    "end_listing": (),
}


class TimeIsUpError(BaseException):
    """The time is up before the next program. It is no Exception, so that hypothesis ends."""


class Programs(RuleBasedStateMachine):
    """One random program on the *sides* that the test has set."""

    sides: ClassVar[Sides]
    descriptors: Bundle[Descriptor] = Bundle("descriptors")
    files: Bundle[Descriptor] = Bundle("files")
    """Descriptors that are most likely of regular files, open to read and write."""
    until: ClassVar[float] = math.inf
    """The time of time.monotonic() after which no program begins."""
    callers: ClassVar[Strategy] = st.sampled_from(list(CALLERS))

    def __init__(self) -> None:
        super().__init__()
        self.opened = 0
        self.filled = 0
        self.appending = False
        options = self.sides.variant.options
        # known.py has the operations that depend on these.
        self.knows_appending = "writeback" in options or options["session"] == "kernel"
        self.knows_clearing = self.knows_appending and options["passthrough"] != "on"

    @initialize()
    def begin(self) -> None:
        """Start a program, `Sides.begin`."""
        if time.monotonic() > self.until:
            raise TimeIsUpError
        self.sides.begin()

    @rule(target=descriptors, caller=callers, path=path, flags=open_flags, mode=mode)
    def open(self, caller: str, path: bytes, flags: int, mode: int) -> MultipleResults[Descriptor]:
        """Open a path, perhaps with O_CREAT."""
        self.appending |= bool(flags & os.O_APPEND)
        return self._open(caller, "open", path, flags, mode)

    @rule(target=files, caller=callers, path=file, flags=file_flags)
    def open_file(self, caller: str, path: bytes, flags: int) -> MultipleResults[Descriptor]:
        """Open or make a file at a path that is most likely a file's."""
        self.appending |= bool(flags & os.O_APPEND)
        return self._open(caller, "open", path, flags, 0o666)

    @rule(target=descriptors, caller=callers, path=directory)
    def open_directory(self, caller: str, path: bytes) -> MultipleResults[Descriptor]:
        """Open a path that is likely a directory's."""
        return self._open(caller, "open", path, os.O_RDONLY | os.O_DIRECTORY, 0)

    @rule(target=descriptors, directory=descriptors, name=name, flags=open_flags, mode=mode)
    def open_at(
        self, directory: Descriptor, name: bytes, flags: int, mode: int
    ) -> MultipleResults[Descriptor]:
        """Open a name below a descriptor, which may be of a directory, perhaps a removed one."""
        self.appending |= bool(flags & os.O_APPEND)
        return self._open(directory[0], "open_at", directory[1], name, flags, mode)

    @rule(target=descriptors, other=descriptors)
    def dup(self, other: Descriptor) -> MultipleResults[Descriptor]:
        """Duplicate a descriptor; the duplicate shares position and flags."""
        return self._open(other[0], "dup", other[1])

    @rule(descriptor=consumes(descriptors))
    def close(self, descriptor: Descriptor) -> None:
        """Close a descriptor."""
        self.sides.do(descriptor[0], "close", descriptor[1])

    @rule(source=files, to=files, size=size)
    def copy_range(self, source: Descriptor, to: Descriptor, size: int) -> None:
        """Copy within the kernel, between two files that the same caller has open."""
        if source[0] == to[0]:
            self.sides.do(source[0], "copy_range", source[1], to[1], size)

    @rule(caller=callers, path=path, owner=owners, follow=follow)
    def chown(self, caller: str, path: bytes, owner: tuple[int, int], follow: bool) -> None:
        """Change the owner or the group of a path."""
        self.sides.do(caller, "chown", path, *owner, follow)

    @rule(path=path, follow=follow)
    def chown_without_ids(self, path: bytes, follow: bool) -> None:
        """Call chown(2) without ids, which clears the set-id bits."""
        self.sides.do("root", "chown", path, -1, -1, follow)

    @rule(descriptor=descriptors, owner=owners)
    def fchown(self, descriptor: Descriptor, owner: tuple[int, int]) -> None:
        """Change the owner or the group of an open file."""
        self.sides.do(descriptor[0], "fchown", descriptor[1], *owner)

    @precondition(lambda self: self.filled < MOST_FILLED)
    @rule(caller=callers, path=directory, count=st.sampled_from([5, 80]))
    def fill(self, caller: str, path: bytes, count: int) -> None:
        """Make files that last, for listings longer than one reply."""
        self.filled += 1
        self.sides.do(caller, "fill", path, self.filled, count)

    @rule(descriptor=descriptors, size=st.sampled_from([300, 1_000, 4_096]))
    def begin_listing(self, descriptor: Descriptor, size: int) -> None:
        """Begin a listing, which ends after further changes of the directory."""
        self.sides.do(descriptor[0], "begin_listing", descriptor[1], size, self.filled)

    @precondition(lambda self: self.knows_appending or not self.appending)
    @rule(descriptor=files, seed=seed, size=st.sampled_from([1, 100, 4_097]), offset=offset)
    def mapped_write(self, descriptor: Descriptor, seed: int, size: int, offset: int) -> None:
        """Store into a shared mapping."""
        self.sides.do(descriptor[0], "mapped_write", descriptor[1], seed, size, offset)

    @precondition(lambda self: self.knows_clearing)
    @rule(descriptor=files)
    def clear_append(self, descriptor: Descriptor) -> None:
        """Clear O_APPEND on an open file."""
        self.sides.do(descriptor[0], "clear_append", descriptor[1])

    @precondition(lambda self: self.sides.variant.options["cache"] == "never")
    @rule(caller=callers, name=st.sampled_from([b"a", b"b", b"c"]), seed=seed)
    def append_with_the_host(self, caller: str, name: bytes, seed: int) -> None:
        """Append after the host has appended, on a mount without caches.

        The position is not compared, because the kernel computes it from the size in its cache.
        """
        opened = self._open(caller, "open", name, os.O_WRONLY | os.O_APPEND, 0)
        self.sides.do(HOST, "append", name, seed, 100)
        for _, number in opened.values:
            self.sides.do(caller, "write", number, seed + 1, 10)
            self.sides.do(caller, "close", number)
        self.sides.do("root", "lstat", name)  # updates the size for copies, known.py

    @precondition(lambda self: len(self.sides.program) % COMPARE_EACH == 0)
    @rule()
    def compare(self) -> None:
        """Compare the trees before the end, which also fills the mount's caches."""
        self.sides.do("root", "compare")

    def teardown(self) -> None:
        """Compare the trees at the end."""
        self.sides.end()

    def _open(self, caller: str, operation: str, *arguments: object) -> MultipleResults[Descriptor]:
        self.opened += 1
        outcome, _ = self.sides.do(caller, operation, self.opened, *arguments)
        if outcome != "ok":
            return multiple()
        return multiple((caller, self.opened))


def _on_path(operation: str, arguments: tuple[Strategy, ...]) -> object:
    @rule(caller=Programs.callers, arguments=st.tuples(*arguments))
    def act(self: Programs, caller: str, arguments: tuple[object, ...]) -> None:
        self.sides.do(caller, operation, *arguments)

    return act


def _on_descriptor(
    operation: str, descriptors: Strategy, arguments: tuple[Strategy, ...]
) -> object:
    @rule(descriptor=descriptors, arguments=st.tuples(*arguments))
    def act(self: Programs, descriptor: Descriptor, arguments: tuple[object, ...]) -> None:
        self.sides.do(descriptor[0], operation, descriptor[1], *arguments)

    return act


for operation, arguments in ON_PATHS.items():
    setattr(Programs, operation, _on_path(operation, arguments))
for operation, arguments in ON_DESCRIPTORS.items():
    setattr(Programs, operation, _on_descriptor(operation, Programs.descriptors, arguments))
for operation, arguments in ON_FILES.items():
    either = st.one_of(Programs.files, Programs.descriptors)
    setattr(Programs, operation, _on_descriptor(operation, either, arguments))

"""Random requests to two sessions at once: the same operation, with the numbers of each.

A `World` is what a kernel knows after the answers so far: inodes, open files, open directories,
each with the nodeid or fh that either session gave. A `Step` makes the bytes of one request for
each session.
"""

import fcntl
import os
import random
import stat
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from passthrough.linux import filecalls
from passthrough.session import abi, wire
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import text

SIDES: Final = (0, 1)
Numbers = tuple[int, int]
Ids = tuple[int, int]

# A nodeid and an fh that no session has given, with a slot's index in the lower half.
UNKNOWN: Final = (1 << 44) | 7
MISSING: Final = (b"absent", b"gone")
COMMON: Final = (b"file", b"dir", b"a", b"b", b"c", b"link", b"suid", b"sgid", b"team", b"sticky")
BELOW: Final = (b"inner", b"below", b"a", b"b")
ODD: Final = (
    *(b"", b".", b"..", b"a/b", b"/", b"x" * 255, b"y" * 256, b"\xff\xfe name", b"fifo"),
    *(b"device", b"socket", b"mount", b"private", b"dangling"),
)
MODES: Final = (
    *(0o600, 0o644, 0o666, 0o755, 0o777, 0o000, 0o1777, 0o2755, 0o2644, 0o4755, 0o6755, 0o2770),
    *(0o100644, 0o40755, 0o106711),
)
TIMES: Final = ((10, 11), (-2, 12), (0, 0), (1 << 31, 999_999_999), (5, 1_000_000_000), (5, 1 << 31))
SIZES: Final = (0, 1, 2, 7, 4096, 10_000, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
OPEN_FLAGS: Final = (
    *(os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR, os.O_RDWR | os.O_TRUNC),
    *(os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_SYNC, os.O_RDWR | os.O_DIRECT),
    *(os.O_RDONLY | 0x20, os.O_RDONLY | os.O_NOATIME, os.O_RDONLY | os.O_TRUNC, 3),
    *(os.O_RDWR | os.O_NOFOLLOW | os.O_NOCTTY, os.O_RDWR | os.O_EXCL | os.O_CREAT),
)
ACL: Final = struct.pack(
    "<IHHIHHIHHIHHIHHI",
    *(2, 1, 6, 0xFFFF_FFFF, 2, 4, 41_001, 4, 4, 0xFFFF_FFFF, 16, 4, 0xFFFF_FFFF, 32, 0, 0xFFFF_FFFF),
)
CAPABILITY: Final = struct.pack("<IIIII", 0x0200_0000, 1, 0, 0, 0)
XATTRS: Final = (
    *(b"user.a", b"user.b", b"user.", b"user.none", b"trusted.t", b"security.capability"),
    *(b"security.x", b"system.posix_acl_access", b"system.posix_acl_default", b"system.nfs4_acl"),
    *(b"", b"nothing", b"user." + b"n" * 260, b"usera"),
)
VALUES: Final = (b"", b"v", b"value", b"w" * 300, ACL, CAPABILITY, ACL[:-1], b"\0\0")


@dataclass(eq=False)
class Node:
    """An inode that the kernel knows."""

    nodeids: Numbers
    inos: Numbers
    label: str
    lookups: list[int] = field(default_factory=lambda: [0, 0])
    kind: int = 0


@dataclass(eq=False)
class Open:
    """An open file or directory."""

    node: Node
    fhs: Numbers
    flags: int
    forgotten: bool = False


Build = Callable[[int], bytes]


class Step(NamedTuple):
    """One request: `nodeids` and `build` say what each session gets of it."""

    opcode: Opcode
    nodeids: Numbers
    build: Build
    caller: Ids
    label: str
    extensions: bytes = b""
    released: Open | None = None
    opened: tuple[Node | None, int] = (None, 0)
    malformed: bool = False


ROOT: Final = (abi.ROOT_ID, abi.ROOT_ID)


class World:
    """What the kernel knows; both sessions must agree on it."""

    def __init__(self) -> None:
        self.root = Node(ROOT, (0, 0), "root", kind=stat.S_IFDIR)
        self.nodes: list[Node] = []
        self.files: list[Open] = []
        self.directories: list[Open] = []
        self.by_nodeid: tuple[dict[int, Node], dict[int, Node]] = ({1: self.root}, {1: self.root})

    def is_open(self, node: Node) -> bool:
        """Return whether the kernel has *node* open."""
        return any(opened.node is node for opened in (*self.files, *self.directories))

    def forget(self, node: Node) -> None:
        """Drop an inode without lookups."""
        self.nodes.remove(node)
        for side in SIDES:
            del self.by_nodeid[side][node.nodeids[side]]


class Generator:
    """Random steps in a world, by *seed*."""

    def __init__(
        self, world: World, seed: int, callers: Sequence[Ids], *, unopened: bool = False
    ) -> None:
        """With *unopened*, some requests have no fh, as with no_open and no_opendir."""
        self.random = random.Random(seed)
        self._world = world
        self._callers = callers
        self._unopened = unopened
        self._makers = [
            (weight, opcode, getattr(self, f"_{opcode.name.lower()}"))
            for opcode, weight in WEIGHTS.items()
        ]
        self._weights = [weight for weight, _, _ in self._makers]

    def step(self) -> Step:
        """Return the next request."""
        ((_, opcode, make),) = self.random.choices(self._makers, self._weights)
        step: Step = make(opcode)
        if opcode in NEVER_MALFORMED:
            return step
        if self.random.random() < 0.03:
            step = self._malformed(step)
        if self.random.random() < 0.05:
            step = step._replace(extensions=struct.pack("=IIIII4x", 24, 32, 2, 41_002, 7))
        return step

    def _malformed(self, step: Step) -> Step:
        """Cut bytes off the end of a request, or add some."""
        cut, more = self.random.randrange(12), self.random.choice((b"", b"\0", b"x", b"y\0", b"12345"))
        build = step.build

        def changed(side: int) -> bytes:
            body = build(side)
            return body[: len(body) - cut] + more

        return step._replace(build=changed, label=f"{step.label} cut {cut} more {more!r}", malformed=True)

    def _make(self, opcode: Opcode, node: Node | None, build: Build | bytes, **more: object) -> Step:
        if isinstance(build, bytes):
            fixed = build

            def build(_: int) -> bytes:
                return fixed

        caller = self.random.choice(self._callers)
        nodeids = (UNKNOWN, UNKNOWN) if node is None else node.nodeids
        body = build(0)
        shown = body if len(body) < 150 else body[:150]
        label = f"{opcode.name} {node.label if node else 'unknown'} {caller} {shown.hex()}"
        return Step(opcode, nodeids, build, caller, label, **more)  # type: ignore[arg-type]

    def caller(self) -> Ids:
        """Return one of the callers."""
        return self.random.choice(self._callers)

    # Parts of requests

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _node(self, *kinds: int) -> Node | None:
        if self._chance(0.01):
            return None
        fitting = [node for node in self._world.nodes if not kinds or node.kind in kinds]
        if not fitting or self._chance(0.1):
            return self._world.root if self._chance(0.6) or not self._world.nodes else (
                self.random.choice(self._world.nodes)
            )
        return self.random.choice(fitting)

    def _directory(self) -> Node | None:
        return self._world.root if self._chance(0.5) else self._node(stat.S_IFDIR)

    def _regular(self) -> Node | None:
        return self._node(stat.S_IFREG)

    def _name(self, node: Node | None = None) -> bytes:
        draw = self.random.random()
        if draw < 0.08:
            return self.random.choice(ODD)
        if draw < 0.2:
            return self.random.choice(MISSING)
        return self.random.choice(COMMON if node is self._world.root else BELOW)

    def _file(self) -> tuple[Node | None, Numbers, int]:
        """Return an inode, an fh and open flags, which belong together most of the time."""
        return self._of(self._world.files, self._regular)

    def _stream(self) -> tuple[Node | None, Numbers, int]:
        return self._of(self._world.directories, self._directory)

    def _of(
        self, table: list[Open], other: Callable[[], Node | None]
    ) -> tuple[Node | None, Numbers, int]:
        usable = [opened for opened in table if not opened.forgotten]
        if self._unopened and self._chance(0.5):
            return other(), (0, 0), 0
        if not usable or self._chance(0.03):
            return other(), (UNKNOWN, UNKNOWN), 0
        opened = self.random.choice(usable)
        return opened.node, opened.fhs, opened.flags

    def _offset(self) -> int:
        return self.random.choice((0, 0, 1, 5, 4096, 8192, 100_000, (1 << 63) - 1, (1 << 64) - 1))

    def _length(self) -> int:
        return self.random.choice((0, 1, 5, 4096, 4096, 10_000))

    # One method for each opcode

    def _lookup(self, opcode: Opcode) -> Step:
        node = self._directory()
        return self._make(opcode, node, text(self._name(node)))

    def _getattr(self, opcode: Opcode) -> Step:
        flags = self.random.choice((0, 1))
        return self._make(opcode, self._node(), wire.GETATTR_IN.pack(flags, UNKNOWN))

    def _statx(self, opcode: Opcode) -> Step:
        return self._make(opcode, self._node(), wire.STATX_IN.pack(0, 0, 0, 0xFFF))

    def _statfs(self, opcode: Opcode) -> Step:
        return self._make(opcode, self._node(), b"")

    def _setattr(self, opcode: Opcode) -> Step:
        bits = (
            *(abi.FATTR_MODE, abi.FATTR_UID, abi.FATTR_GID, abi.FATTR_SIZE, abi.FATTR_ATIME),
            *(abi.FATTR_MTIME, abi.FATTR_ATIME_NOW, abi.FATTR_MTIME_NOW, abi.FATTR_CTIME),
            *(abi.FATTR_LOCKOWNER, abi.FATTR_KILL_SUIDGID),
        )
        valid = sum(self.random.sample(bits, self.random.choice((0, 1, 1, 1, 2, 3, 5))))
        node, fhs = self._node(), ROOT
        if self._chance(0.4):
            node, fhs, _ = self._file()
            valid |= self.random.choice((abi.FATTR_FH, abi.FATTR_FH, 0))
        owners = (0, 41_001, 41_002, 41_003, 1_000_500, 0xFFFF_FFFF)
        (atime, atime_ns), (mtime, mtime_ns) = self.random.choices(TIMES, (5, 5, 5, 5, 1, 1), k=2)
        if self._chance(0.2):
            mtime, mtime_ns = atime, atime_ns = int(time.time()), 7
        rest = (
            *(self.random.choices(SIZES, (5, 5, 5, 5, 5, 5, 1, 1, 1))[0], 9, atime, mtime, 3),
            *(atime_ns, mtime_ns, 4, self.random.choice(MODES)),
            *(self.random.choice(owners), self.random.choice(owners)),
        )
        return self._make(opcode, node, lambda side: wire.SETATTR_IN.pack(valid, fhs[side], *rest))

    def _access(self, opcode: Opcode) -> Step:
        mask = self.random.choice((0, 1, 2, 4, 6, 7, 8, 0xFFFF_FFFF))
        return self._make(opcode, self._node(), wire.ACCESS_IN.pack(mask))

    def _syncfs(self, opcode: Opcode) -> Step:
        return self._make(opcode, self._regular(), bytes(8))  # of a directory it is slow

    def _readlink(self, opcode: Opcode) -> Step:
        return self._make(opcode, self._node(stat.S_IFLNK), b"")

    def _mknod(self, opcode: Opcode) -> Step:
        node = self._directory()
        kind = self.random.choice(
            (0, stat.S_IFREG, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFDIR)
        )
        fields = (kind | stat.S_IMODE(self.random.choice(MODES)), self.random.choice((0, 0x103)))
        body = wire.MKNOD_IN.pack(*fields, self.random.choice((0, 0o22))) + text(self._name(node))
        return self._make(opcode, node, body)

    def _mkdir(self, opcode: Opcode) -> Step:
        node = self._directory()
        body = wire.MKDIR_IN.pack(self.random.choice(MODES), 0o27) + text(self._name(node))
        return self._make(opcode, node, body)

    def _symlink(self, opcode: Opcode) -> Step:
        node = self._directory()
        target = self.random.choice((b"file", b"", b"../up", b"t" * 4095, b"t" * 4096))
        return self._make(opcode, node, text(self._name(node), target))

    def _link(self, opcode: Opcode) -> Step:
        node, old = self._directory(), self._node(stat.S_IFREG, stat.S_IFLNK)
        name, olds = self._name(node), old.nodeids if old else (UNKNOWN, UNKNOWN)
        return self._make(opcode, node, lambda side: wire.LINK_IN.pack(olds[side]) + text(name))

    def _unlink(self, opcode: Opcode) -> Step:
        node = self._directory()
        return self._make(opcode, node, text(self._name(node)))

    _rmdir = _unlink

    def _rename(self, opcode: Opcode) -> Step:
        node, new = self._directory(), self._directory()
        news = new.nodeids if new else (UNKNOWN, UNKNOWN)
        names = text(self._name(node), self._name(new))
        return self._make(opcode, node, lambda side: wire.RENAME_IN.pack(news[side]) + names)

    def _rename2(self, opcode: Opcode) -> Step:
        node, new = self._directory(), self._directory()
        news = new.nodeids if new else (UNKNOWN, UNKNOWN)
        names = text(self._name(node), self._name(new))
        flags = self.random.choice((0, 1, 1, 2, 2, 3, 4, 5, 8, 1 << 31))
        return self._make(opcode, node, lambda side: wire.RENAME2_IN.pack(news[side], flags) + names)

    def _opening(self, opcode: Opcode, node: Node | None) -> Step:
        flags = self.random.choice(OPEN_FLAGS)
        # The kernel sends the flag with O_TRUNC alone.
        more = self.random.choice((0, abi.OPEN_KILL_SUIDGID)) if flags & os.O_TRUNC else 0
        body = wire.OPEN_IN.pack(flags, more)
        return self._make(opcode, node, body, opened=(node, flags))

    def _open(self, opcode: Opcode) -> Step:
        return self._opening(opcode, self._regular())

    def _opendir(self, opcode: Opcode) -> Step:
        return self._opening(opcode, self._directory())

    def _create(self, opcode: Opcode) -> Step:
        node, flags = self._directory(), self.random.choice(OPEN_FLAGS)
        fields = (flags, self.random.choice(MODES), self.random.choice((0, 0o22)), 0)
        body = wire.CREATE_IN.pack(*fields) + text(self._name(node))
        return self._make(opcode, node, body, opened=(None, flags))

    def _tmpfile(self, opcode: Opcode) -> Step:
        node, flags = self._directory(), self.random.choice(OPEN_FLAGS)
        fields = (flags, self.random.choice(MODES), self.random.choice((0, 0o22)), 0)
        return self._make(opcode, node, wire.CREATE_IN.pack(*fields) + text(b"/"), opened=(None, flags))

    def _read(self, opcode: Opcode) -> Step:
        node, fhs, flags = self._file()
        if self._chance(0.1):
            flags ^= self.random.choice((os.O_DIRECT, os.O_APPEND, os.O_SYNC))
        size = self.random.choice((0, 1, 100, 4096, 100_000, 1 << 20, (1 << 20) + 1))
        rest = (self._offset(), size, 0, 0, flags)
        return self._make(opcode, node, lambda side: wire.READ_IN.pack(fhs[side], *rest))

    def _write(self, opcode: Opcode) -> Step:
        node, fhs, flags = self._file()
        if self._chance(0.1):
            flags ^= self.random.choice((os.O_DIRECT, os.O_APPEND, os.O_SYNC))
        size, more = self._length(), self.random.choice((0, 0, abi.WRITE_KILL_SUIDGID))
        data = bytes([self.random.randrange(256)]) * size
        rest = (min(self._offset(), 1 << 62), size + (self._chance(0.02)), more, 0, flags)
        return self._make(opcode, node, lambda side: wire.WRITE_IN.pack(fhs[side], *rest) + data)

    def _flush(self, opcode: Opcode) -> Step:
        node, fhs, _ = self._file()
        owner = self.random.choice((1, 2))
        return self._make(opcode, node, lambda side: wire.FLUSH_IN.pack(fhs[side], owner))

    def _fsync(self, opcode: Opcode) -> Step:
        node, fhs, _ = self._file()
        flags = self.random.choice((0, 1))
        return self._make(opcode, node, lambda side: wire.FSYNC_IN.pack(fhs[side], flags))

    def _fsyncdir(self, opcode: Opcode) -> Step:
        node, fhs, _ = self._stream()
        return self._make(opcode, node, lambda side: wire.FSYNC_IN.pack(fhs[side], 0))

    def _release(self, opcode: Opcode) -> Step:
        return self._released(opcode, self._world.files)

    def _releasedir(self, opcode: Opcode) -> Step:
        return self._released(opcode, self._world.directories)

    def _released(self, opcode: Opcode, table: list[Open]) -> Step:
        if not table or self._chance(0.03):
            body = wire.RELEASE_IN.pack(UNKNOWN, 0, 0, 0)
            return self._make(opcode, self._regular(), body)
        return self.release(opcode, self.random.choice(table))

    def release(self, opcode: Opcode, opened: Open) -> Step:
        """Return the request that closes *opened*."""
        more = self.random.choice((0, abi.RELEASE_FLOCK_UNLOCK))
        return self._make(
            opcode,
            opened.node,
            lambda side: wire.RELEASE_IN.pack(opened.fhs[side], opened.flags, more, 1),
            released=opened,
        )

    def _getlk(self, opcode: Opcode) -> Step:
        node, fhs, _ = self._file()
        kind = self.random.choice((fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK, 7))
        start = self.random.choice((0, 0, 5, 100, 1 << 63))
        end = self.random.choice((start, start + 10, (1 << 63) - 1, (1 << 64) - 1, 3))
        rest = (self.random.choice((1, 2)), start, end, kind, 5)
        return self._make(opcode, node, lambda side: wire.LK_IN.pack(fhs[side], *rest, 0))

    def _setlk(self, opcode: Opcode) -> Step:
        step = self._getlk(opcode)
        if self._chance(0.6):
            return step
        build = step.build
        flock = wire.LK_IN.size - 8

        def changed(side: int) -> bytes:
            body = build(side)
            return body[:flock] + struct.pack("=II", abi.LK_FLOCK, 0)

        return step._replace(build=changed, label=f"{step.label} flock")

    def _setlkw(self, opcode: Opcode) -> Step:
        """Unlock: all else could wait for ever, with one thread."""
        node, fhs, _ = self._file()
        more = self.random.choice((0, abi.LK_FLOCK))
        rest = (1, 0, (1 << 63) - 1, fcntl.F_UNLCK, 5, more)
        return self._make(opcode, node, lambda side: wire.LK_IN.pack(fhs[side], *rest))

    def _interrupt(self, opcode: Opcode) -> Step:
        return self._make(opcode, self._world.root, wire.INTERRUPT_IN.pack(UNKNOWN))

    def _fallocate(self, opcode: Opcode) -> Step:
        node, fhs, _ = self._file()
        mode = self.random.choice(
            (0, 0, 1, filecalls.FALLOC_FL_PUNCH_HOLE | 1, filecalls.FALLOC_FL_ZERO_RANGE, 8, 32, 4, 512)
        )
        offset = self.random.choice((0, 4096, 5, 1 << 63))
        rest = (offset, self.random.choice((0, 1, 4096, 8192)), mode)
        return self._make(opcode, node, lambda side: wire.FALLOCATE_IN.pack(fhs[side], *rest))

    def _lseek(self, opcode: Opcode) -> Step:
        node, fhs, _ = self._file()
        whence = self.random.choice((os.SEEK_DATA, os.SEEK_HOLE, os.SEEK_SET, os.SEEK_END, 9))
        rest = (self._offset(), whence)
        return self._make(opcode, node, lambda side: wire.LSEEK_IN.pack(fhs[side], *rest))

    def _copy_file_range(self, opcode: Opcode) -> Step:
        node, fhs, _ = self._file()
        to, to_fhs, _ = self._file()
        tos = to.nodeids if to else (UNKNOWN, UNKNOWN)
        offsets = self.random.choice((0, 1, 4096)), self.random.choice((0, 1, 50_000, 1 << 62))
        rest = self.random.choice((0, 1, 4096, 1 << 40)), self.random.choice((0, 0, 0, 0, 1))
        return self._make(
            opcode,
            node,
            lambda side: wire.COPY_FILE_RANGE_IN.pack(
                fhs[side], offsets[0], tos[side], to_fhs[side], offsets[1], *rest
            ),
        )

    _copy_file_range_64 = _copy_file_range

    def _ioctl(self, opcode: Opcode) -> Step:
        directory = self._chance(0.3)
        node, fhs, _ = self._stream() if directory else self._file()
        flag = abi.IOCTL_DIR if directory else 0
        command, data, room = self.random.choice(
            (
                (filecalls.FS_IOC_GETFLAGS, b"", 4),
                (filecalls.FS_IOC_GETFLAGS, b"", 8),
                (filecalls.FS_IOC_SETFLAGS, struct.pack("=I", 0x40 | 0x80000), 0),
                (filecalls.FS_IOC_SETFLAGS, struct.pack("=I", 0x80000), 0),
                (filecalls.FS_IOC_SETFLAGS, b"12", 0),
                (filecalls.FS_IOC_FSGETXATTR, b"", 28),
                (filecalls.FS_IOC_FSSETXATTR, bytes(28), 0),
                (0x5401, b"", 60),
            )
        )
        rest = (flag, command, 0, len(data), room)
        return self._make(opcode, node, lambda side: wire.IOCTL_IN.pack(fhs[side], *rest) + data)

    def _getxattr(self, opcode: Opcode) -> Step:
        room = self.random.choice((0, 1, 5, 40, 65_536, 1 << 20))
        return self._make(opcode, self._node(), wire.GETXATTR_IN.pack(room) + text(self._xattr()))

    def _listxattr(self, opcode: Opcode) -> Step:
        room = self.random.choice((0, 1, 7, 40, 65_536, 1 << 20))
        return self._make(opcode, self._node(), wire.GETXATTR_IN.pack(room))

    def _setxattr(self, opcode: Opcode) -> Step:
        name, value = self._xattr(), self.random.choice(VALUES)
        flags, more = self.random.choice((0, 0, 0, 1, 2, 3, 8, 1 << 31)), self.random.choice((0, 1))
        size = len(value) + (self._chance(0.02))
        body = wire.SETXATTR_IN.pack(size, flags, more) + text(name) + value
        return self._make(opcode, self._node(), body, malformed=size != len(value))

    def _removexattr(self, opcode: Opcode) -> Step:
        return self._make(opcode, self._node(), text(self._xattr()))

    def _xattr(self) -> bytes:
        return self.random.choice(XATTRS)

    def _forget(self, opcode: Opcode) -> Step:
        node = self._forgettable()
        if node is None:
            return self._make(opcode, None, wire.FORGET_IN.pack(1))
        return self.forget(node, self.random.choice((1, None)))

    def forget(self, node: Node, count: int | None = None) -> Step:
        """Return the request that gives *count* lookups of *node* back, or all of them."""
        counts = self._taken(node, count)
        return self._make(Opcode.FORGET, node, lambda side: wire.FORGET_IN.pack(counts[side]))

    def _batch_forget(self, opcode: Opcode) -> Step:
        node = self._forgettable()
        more = wire.FORGET_ONE.pack(UNKNOWN, 3)
        if node is None:
            return self._make(opcode, None, wire.BATCH_FORGET_IN.pack(1) + more)
        nodeids, counts = node.nodeids, self._taken(node, 1)
        return self._make(
            opcode,
            None,
            lambda side: wire.BATCH_FORGET_IN.pack(2)
            + wire.FORGET_ONE.pack(nodeids[side], counts[side])
            + more,
        )

    def _taken(self, node: Node, count: int | None) -> list[int]:
        """Take lookups from *node*; return how many of each session.

        A session may have counted more of them. Both must forget the inode at once.
        """
        if count is None or min(node.lookups) <= count:
            counts, node.lookups = node.lookups, [0, 0]
            for opened in (*self._world.files, *self._world.directories):
                opened.forgotten = opened.forgotten or opened.node is node
            self._world.forget(node)
            return counts
        node.lookups = [lookups - count for lookups in node.lookups]
        return [count, count]

    def _forgettable(self) -> Node | None:
        nodes = [node for node in self._world.nodes if min(node.lookups) > 0]
        return self.random.choice(nodes) if nodes else None


# How often each is sent, and never cut or lengthened: the world must know what it did.
WEIGHTS: Final[Mapping[Opcode, int]] = {
    Opcode.LOOKUP: 16,
    Opcode.GETATTR: 4,
    Opcode.STATX: 2,
    Opcode.STATFS: 1,
    Opcode.SETATTR: 14,
    Opcode.ACCESS: 3,
    Opcode.SYNCFS: 1,
    Opcode.READLINK: 2,
    Opcode.MKNOD: 3,
    Opcode.MKDIR: 3,
    Opcode.SYMLINK: 2,
    Opcode.LINK: 3,
    Opcode.UNLINK: 3,
    Opcode.RMDIR: 2,
    Opcode.RENAME: 2,
    Opcode.RENAME2: 3,
    Opcode.OPEN: 6,
    Opcode.OPENDIR: 3,
    Opcode.CREATE: 3,
    Opcode.TMPFILE: 1,
    Opcode.READ: 5,
    Opcode.WRITE: 6,
    Opcode.FLUSH: 2,
    Opcode.FSYNC: 1,
    Opcode.FSYNCDIR: 1,
    Opcode.RELEASE: 3,
    Opcode.RELEASEDIR: 2,
    Opcode.GETLK: 2,
    Opcode.SETLK: 3,
    Opcode.SETLKW: 1,
    Opcode.INTERRUPT: 1,
    Opcode.FALLOCATE: 2,
    Opcode.LSEEK: 2,
    Opcode.COPY_FILE_RANGE: 2,
    Opcode.COPY_FILE_RANGE_64: 1,
    Opcode.IOCTL: 2,
    Opcode.GETXATTR: 4,
    Opcode.LISTXATTR: 2,
    Opcode.SETXATTR: 4,
    Opcode.REMOVEXATTR: 2,
    Opcode.FORGET: 5,
    Opcode.BATCH_FORGET: 1,
}
NEVER_MALFORMED: Final = {
    *(Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.RELEASE, Opcode.RELEASEDIR),
}

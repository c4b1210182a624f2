"""Random requests to two sessions at once: the same operation, with the numbers of each."""

import stat
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Final

from passthrough.session import abi, wire
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import text
from tests.support.tools.random_files import OfFiles
from tests.support.tools.random_parts import MODES, UNKNOWN
from tests.support.tools.random_world import ROOT, Ids, Node, Step, World

TIMES: Final = (
    *((10, 11), (-2, 12), (0, 0), (1 << 31, 999_999_999)),
    *((5, 1_000_000_000), (5, 1 << 31)),  # more nanoseconds than a second has
)
SIZES: Final = (0, 1, 2, 7, 4096, 10_000, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_NONE: Final = 0xFFFF_FFFF
# An access ACL with a named user, and capabilities of a file.
ACL: Final = struct.pack(
    "<IHHIHHIHHIHHIHHI",
    *(2, 1, 6, _NONE, 2, 4, 41_001, 4, 4, _NONE, 16, 4, _NONE, 32, 0, _NONE),
)
CAPABILITY: Final = struct.pack("<IIIII", 0x0200_0000, 1, 0, 0, 0)
XATTRS: Final = (
    *(b"user.a", b"user.b", b"user.c", b"user.", b"user.none", b"trusted.t"),
    *(b"security.capability", b"security.x", b"system.nfs4_acl"),
    *(b"system.posix_acl_access", b"system.posix_acl_default"),
    *(b"", b"nothing", b"user." + b"n" * 260, b"usera"),
)
VALUES: Final = (b"", b"v", b"value", b"w" * 300, ACL, CAPABILITY, ACL[:-1], b"\0\0")


class Generator(OfFiles):
    """Random requests in a world, by *seed*; one method for each opcode."""

    def __init__(
        self, world: World, seed: int, callers: Sequence[Ids], *, unopened: bool = False
    ) -> None:
        """With *unopened*, some requests have no fh, as with no_open and no_opendir."""
        super().__init__(world, seed, callers, unopened=unopened)
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
        cut = self.random.randrange(12)
        more = self.random.choice((b"", b"\0", b"x", b"y\0", b"12345"))
        build = step.build

        def changed(side: int) -> bytes:
            body = build(side)
            return body[: len(body) - cut] + more

        label = f"{step.label} cut {cut} more {more!r}"
        return step._replace(build=changed, label=label, malformed=True)

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
        mode, draw = self.random.choice(MODES), self.random.random()
        if draw < 0.1:  # as libfuse has utimensat(2) without a time
            valid = abi.FATTR_ATIME | abi.FATTR_MTIME
            mtime, mtime_ns = atime, atime_ns = int(time.time()), 7
        elif draw < 0.25 and node is not None:  # as Linux takes suid and sgid bits away
            valid = abi.FATTR_MODE | (valid & (abi.FATTR_SIZE | abi.FATTR_FH))
            mode = node.mode & ~self.random.choice((0o6000, 0o6000, 0o4000, 0o2000))
        rest = (
            *(self.random.choices(SIZES, (5, 5, 5, 5, 5, 5, 1, 1, 1))[0], 9, atime, mtime, 3),
            *(atime_ns, mtime_ns, 4, mode),
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
        return self._make(
            opcode, node, lambda side: wire.RENAME2_IN.pack(news[side], flags) + names
        )

    def _getxattr(self, opcode: Opcode) -> Step:
        room = self.random.choice((0, 5, 40, 400, 65_536, 1 << 20))
        body = wire.GETXATTR_IN.pack(room) + text(self._xattr())
        return self._make(opcode, self._with_xattrs(), body)

    def _listxattr(self, opcode: Opcode) -> Step:
        room = self.random.choice((0, 1, 7, 40, 65_536, 1 << 20))
        return self._make(opcode, self._with_xattrs(), wire.GETXATTR_IN.pack(room))

    def _setxattr(self, opcode: Opcode) -> Step:
        name, value = self._xattr(), self.random.choice(VALUES)
        flags = self.random.choice((0, 0, 0, 0, 0, 0, 1, 2, 3, 8, 1 << 31))
        more = self.random.choice((0, 1))
        size = len(value) + (self._chance(0.02))
        body = wire.SETXATTR_IN.pack(size, flags, more) + text(name) + value
        return self._make(opcode, self._with_xattrs(), body, malformed=size != len(value))

    def _removexattr(self, opcode: Opcode) -> Step:
        return self._make(opcode, self._with_xattrs(), text(self._xattr()))

    def _xattr(self) -> bytes:
        return self.random.choice(XATTRS[:2] if self._chance(0.6) else XATTRS)

    def _with_xattrs(self) -> Node | None:
        """Return an inode that has attributes from the begin, if one is known."""
        fitting = [node for node in self._world.nodes if node.kind in {stat.S_IFREG, stat.S_IFDIR}]
        return self.random.choice(fitting[:4]) if fitting and self._chance(0.7) else self._node()

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

        def build(side: int) -> bytes:
            row = wire.FORGET_ONE.pack(nodeids[side], counts[side])
            return wire.BATCH_FORGET_IN.pack(2) + row + more

        return self._make(opcode, None, build)

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
    Opcode.FORGET: 3,
    Opcode.BATCH_FORGET: 1,
}
NEVER_MALFORMED: Final = {
    *(Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.RELEASE, Opcode.RELEASEDIR),
}

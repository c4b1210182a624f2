"""Random requests about open files and directories: data, locks, ranges."""

import fcntl
import os
import struct
from typing import Final

from passthrough.linux import filecalls
from passthrough.session import abi, wire
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import text
from tests.support.tools.random_parts import MODES, OPEN_FLAGS, UNKNOWN, Parts
from tests.support.tools.random_world import Node, Open, Step

FALLOCATIONS: Final = (
    *(0, 0, filecalls.FALLOC_FL_KEEP_SIZE, filecalls.FALLOC_FL_ZERO_RANGE),
    *(filecalls.FALLOC_FL_PUNCH_HOLE | filecalls.FALLOC_FL_KEEP_SIZE, 4, 512),
    *(filecalls.FALLOC_FL_COLLAPSE_RANGE, filecalls.FALLOC_FL_INSERT_RANGE),
)
# The command, its data, the room for its answer.
IOCTLS: Final = (
    (filecalls.FS_IOC_GETFLAGS, b"", 4),
    (filecalls.FS_IOC_GETFLAGS, b"", 8),
    (filecalls.FS_IOC_SETFLAGS, struct.pack("=I", 0x40 | 0x80000), 0),  # FS_NODUMP_FL, extents
    (filecalls.FS_IOC_SETFLAGS, struct.pack("=I", 0x80000), 0),
    (filecalls.FS_IOC_SETFLAGS, b"12", 0),
    (filecalls.FS_IOC_FSGETXATTR, b"", 28),
    (filecalls.FS_IOC_FSSETXATTR, bytes(28), 0),
    (0x5401, b"", 60),  # TCGETS
)


class OfFiles(Parts):
    """One method for each opcode."""

    def _offset(self) -> int:
        return self.random.choice((0, 0, 1, 5, 4096, 8192, 100_000, (1 << 63) - 1, (1 << 64) - 1))

    def _length(self) -> int:
        return self.random.choice((0, 1, 5, 4096, 4096, 10_000))

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
        body = wire.CREATE_IN.pack(*fields) + text(b"/")
        return self._make(opcode, node, body, opened=(None, flags))

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
        mode = self.random.choice(FALLOCATIONS)
        offset = self.random.choice((0, 4096, 5, 1 << 63))
        rest = (offset, self.random.choice((0, 1, 4096, 8192)), mode)
        return self._make(opcode, node, lambda side: wire.FALLOCATE_IN.pack(fhs[side], *rest))

    def _lseek(self, opcode: Opcode) -> Step:
        node, fhs, _ = self._file()
        whence = self.random.choice((os.SEEK_DATA, os.SEEK_HOLE, os.SEEK_SET, os.SEEK_END, 9))
        rest = (self.random.choice((0, 0, 5, 4096, self._offset())), whence)
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
        command, data, room = self.random.choice(IOCTLS)
        rest = (flag, command, 0, len(data), room)
        return self._make(opcode, node, lambda side: wire.IOCTL_IN.pack(fhs[side], *rest) + data)

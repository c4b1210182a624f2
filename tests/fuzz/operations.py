"""The operations of one caller on one side: a method for each operation of the fuzz test.

A result has only values that are equal on two file systems. Left out, and why:

- inode numbers: each file system chooses its own (a mount's equal its source's, see tree.py);
- current times: the two sides act one after the other; only times set explicitly are compared;
- access times, except one just set: with pages cached, a read need not reach the host;
- sizes and blocks of directories: they depend on the history of the host's file system;
- st_blocks of files: the host allocates when it writes back, and attributes may be cached before;
- the order of a listing.
"""

import errno
import fcntl
import hashlib
import itertools
import mmap
import os
import stat
import time
from collections.abc import Sequence

from tests.fuzz import calls

Outcome = tuple[str, object]
"""An errno's name and None, or "ok" and the result as plain data."""

_LISTING_BYTES = 32 * 1024
_SHOWN_BYTES = 40
_NOW_WITHIN_NS = 3_600 * calls.NS_PER_S
FS_IOC_GETFLAGS = 0x8008_6601


def content(seed: int, size: int) -> bytes:
    """Return *size* bytes that differ at each offset of a page: the period 251 is prime."""
    block = bytes((seed * 37 + index) % 251 for index in range(251))
    return (block * (size // 251 + 1))[:size]


def comparable_time(ns: int) -> int | str:
    """Return a time that was set explicitly, and "now" for a time within an hour of now."""
    return "now" if abs(ns - time.time_ns()) < _NOW_WITHIN_NS else ns


def attributes(status: os.stat_result) -> tuple[object, ...]:
    """Return the attributes of stat(2) that are equal on both sides."""
    size = "" if stat.S_ISDIR(status.st_mode) else status.st_size
    return (
        *(oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid),
        *(size, status.st_rdev, comparable_time(status.st_mtime_ns)),
    )


def shown(data: bytes) -> tuple[int, bytes | str]:
    """Return the length of *data*, and its bytes if it is short, else its hash."""
    return len(data), data if len(data) <= _SHOWN_BYTES else hashlib.sha256(data).hexdigest()


class PathOperations:
    """Operations on paths, relative to the working directory."""

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(path, mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(path)

    def unlink(self, path: bytes) -> None:
        os.unlink(path)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        calls.renameat2(old, new, flags)

    def link(self, old: bytes, new: bytes, follow: bool) -> None:
        os.link(old, new, follow_symlinks=follow)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, path)

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(path)

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        os.mknod(path, mode, device)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(path, mode)

    def chown(self, path: bytes, uid: int, gid: int, follow: bool) -> None:
        os.chown(path, uid, gid, follow_symlinks=follow)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(path, size)

    def utimens(self, path: bytes, atime: int, mtime: int, follow: bool) -> object:
        calls.utimensat(path, atime, mtime, 0 if follow else calls.AT_SYMLINK_NOFOLLOW)
        status = os.stat(path, follow_symlinks=follow)
        return _time_set(atime, status)

    def stat(self, path: bytes) -> object:
        return attributes(os.stat(path))

    def lstat(self, path: bytes) -> object:
        return attributes(os.lstat(path))

    def access(self, path: bytes, mask: int, follow: bool) -> bool:
        return os.access(path, mask, follow_symlinks=follow)

    def listdir(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(path))

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int, follow: bool) -> None:
        os.setxattr(path, name, value, flags, follow_symlinks=follow)

    def getxattr(self, path: bytes, name: bytes, follow: bool) -> object:
        return shown(os.getxattr(path, name, follow_symlinks=follow))

    def listxattr(self, path: bytes, follow: bool) -> list[str]:
        return sorted(map(ascii, os.listxattr(path, follow_symlinks=follow)))

    def removexattr(self, path: bytes, name: bytes, follow: bool) -> None:
        os.removexattr(path, name, follow_symlinks=follow)

    def fill(self, path: bytes, generation: int, count: int) -> None:
        """Make *count* files that no other operation removes."""
        for number in range(count):
            name = b"%s/entry-%d-%d-%s" % (path, generation, number, b"long" * 10)
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

    def append(self, path: bytes, seed: int, size: int) -> str:
        """Append to *path* if it is a regular file."""
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return "no file"
            os.write(fd, content(seed, size))
            return "appended"
        finally:
            os.close(fd)

    def fallocate(self, directory: bytes) -> None:
        """Allocate space for a new file; the times of an existing one would differ."""
        name = directory + b"/scratch"
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            calls.fallocate(fd, calls.FALLOC_FL_KEEP_SIZE, 0, 4_096)
        finally:
            os.close(fd)
            os.unlink(name)

    def tmpfile(self, path: bytes) -> None:
        os.close(os.open(path, os.O_TMPFILE | os.O_RDWR, 0o600))

    def umask(self, mask: int) -> None:
        os.umask(mask)


class DescriptorOperations:
    """Operations on descriptors, by the number that the program chose for each."""

    def __init__(self) -> None:
        self.descriptors: dict[int, int] = {}
        self._first: dict[int, int] = {}
        """Number -> number of the original: duplicates share its position."""
        self._streams: dict[int, tuple[int, list[bytes]]] = {}
        """Number of the original -> the begun listing."""

    def open(self, number: int, path: bytes, flags: int, mode: int) -> None:
        """Open *path* without waiting for the other end of a fifo."""
        self.descriptors[number] = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, mode)
        self._first[number] = number

    def open_at(self, number: int, directory: int, path: bytes, flags: int, mode: int) -> None:
        directory_fd = self.descriptors[directory]
        self.descriptors[number] = os.open(path, flags | os.O_NONBLOCK, mode, dir_fd=directory_fd)
        self._first[number] = number

    def close(self, number: int) -> None:
        os.close(self.descriptors.pop(number))

    def dup(self, number: int, other: int) -> None:
        self.descriptors[number] = os.dup(self.descriptors[other])
        self._first[number] = self._first[other]

    def read(self, number: int, size: int) -> object:
        """Read at the position. A directory's is a cookie, which may be out of range."""
        try:
            return shown(os.read(self.descriptors[number], size))
        except OSError:
            if self._is_directory(number):
                return "refused"
            raise

    def pread(self, number: int, size: int, offset: int) -> object:
        return shown(os.pread(self.descriptors[number], size, offset))

    def write(self, number: int, seed: int, size: int) -> int:
        return os.write(self.descriptors[number], content(seed, size))

    def pwrite(self, number: int, seed: int, size: int, offset: int) -> int:
        return os.pwrite(self.descriptors[number], content(seed, size), offset)

    def lseek(self, number: int, offset: int, whence: int) -> int | str:
        """Move the position, except in a directory: there it is a cookie of the file system."""
        if self._is_directory(number):
            return "opaque"
        return os.lseek(self.descriptors[number], offset, whence)

    def ftruncate(self, number: int, size: int) -> None:
        os.ftruncate(self.descriptors[number], size)

    def fsync(self, number: int) -> None:
        os.fsync(self.descriptors[number])

    def fdatasync(self, number: int) -> None:
        os.fdatasync(self.descriptors[number])

    def fstat(self, number: int) -> object:
        return attributes(os.fstat(self.descriptors[number]))

    def fchmod(self, number: int, mode: int) -> None:
        os.fchmod(self.descriptors[number], mode)

    def fchown(self, number: int, uid: int, gid: int) -> None:
        os.fchown(self.descriptors[number], uid, gid)

    def futimens(self, number: int, atime: int, mtime: int) -> object:
        calls.utimensat(self.descriptors[number], atime, mtime)
        return _time_set(atime, os.fstat(self.descriptors[number]))

    def fsetxattr(self, number: int, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self.descriptors[number], name, value, flags)

    def fgetxattr(self, number: int, name: bytes) -> object:
        return shown(os.getxattr(self.descriptors[number], name))

    def flags(self, number: int) -> str:
        return oct(fcntl.fcntl(self.descriptors[number], fcntl.F_GETFL))

    def set_append(self, number: int) -> None:
        """Set O_APPEND on an open file, fcntl(2) F_SETFL."""
        fd = self.descriptors[number]
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)

    def clear_append(self, number: int) -> None:
        """Clear O_APPEND. known.py explains on which mounts random programs do not do this."""
        fd = self.descriptors[number]
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_APPEND)

    def mapped_write(self, number: int, seed: int, size: int, offset: int) -> str:
        """Store into a shared mapping, unless it is beyond the file's end: SIGBUS."""
        fd = self.descriptors[number]
        if offset + size > os.fstat(fd).st_size:
            return "beyond the end"
        with mmap.mmap(fd, offset + size) as mapping:
            mapping[offset:] = content(seed, size)
            mapping.flush()
        return "stored"

    def mapped_read(self, number: int) -> object:
        fd = self.descriptors[number]
        size = os.fstat(fd).st_size
        if not size:
            return "empty"
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapping:
            return shown(mapping[:])

    def copy_range(self, source: int, target: int, size: int) -> int:
        return os.copy_file_range(self.descriptors[source], self.descriptors[target], size)

    def seek_hole(self, number: int, offset: int) -> object:
        """Return the next hole at or after *offset*, and keep the position."""
        fd = self.descriptors[number]
        if self._is_directory(number):
            return "opaque"
        position = os.lseek(fd, 0, os.SEEK_CUR)
        try:
            return os.lseek(fd, offset, os.SEEK_HOLE)
        finally:
            os.lseek(fd, position, os.SEEK_SET)

    def ioctl(self, number: int) -> None:
        """Get the flags of chattr(1), without their values, which depend on the host."""
        fcntl.ioctl(self.descriptors[number], FS_IOC_GETFLAGS, bytes(8))

    def relist(self, number: int) -> list[tuple[bytes, int]]:
        """List all names from the start, which gives current names after rewinddir(3).

        A begun listing is dropped, because the number of names that it had read depends on the
        host.
        """
        os.lseek(self.descriptors[number], 0, os.SEEK_SET)
        self._streams.pop(self._first[number], None)
        return sorted(itertools.chain.from_iterable(self._chunks(number)))

    def begin_listing(self, number: int, size: int, generation: int) -> None:
        """Read the first names, as many as fit *size* bytes; the host chooses which.

        The files of `fill` up to *generation* exist now, and no operation removes them.
        """
        os.lseek(self.descriptors[number], 0, os.SEEK_SET)
        chunk = calls.getdents64(self.descriptors[number], size)
        self._streams[self._first[number]] = generation, [name for name, _ in chunk]

    def end_listing(self, number: int) -> object:
        """Read all further names, and return the lasting names of the whole listing, with repeats.

        Names that were added or removed since its start may be listed or not, readdir(3).
        """
        if self._first[number] not in self._streams:
            return "not begun"
        generation, begun = self._streams.pop(self._first[number])
        rest = [name for chunk in self._chunks(number) for name, _ in chunk]
        lasting = [name for name in begun + rest if name.startswith(b"entry-")]
        return sorted(name for name in lasting if int(name.split(b"-")[1]) <= generation)

    def _is_directory(self, number: int) -> bool:
        return stat.S_ISDIR(os.fstat(self.descriptors[number]).st_mode)

    def _chunks(self, number: int) -> Sequence[list[tuple[bytes, int]]]:
        fd = self.descriptors[number]
        return list(iter(lambda: calls.getdents64(fd, _LISTING_BYTES), []))


class Operations(PathOperations, DescriptorOperations):
    """All operations of one caller on one side, with its open descriptors."""

    def act(self, operation: str, arguments: Sequence[object]) -> Outcome:
        """Run one operation, and return its outcome."""
        try:
            return "ok", getattr(self, operation)(*arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0], None
        except KeyError:  # a shortened program may lack the step that opens
            return "not open", None

    def begin(self, directory: bytes) -> None:
        """Start a program in *directory*, with the usual umask."""
        os.umask(0o022)
        os.chdir(directory)

    def end(self) -> None:
        """Close all descriptors."""
        for fd in self.descriptors.values():
            os.close(fd)
        self.descriptors.clear()
        self._first.clear()
        self._streams.clear()


def _time_set(atime: int, status: os.stat_result) -> object:
    """Return the times after a change, with the access time only if it was set explicitly."""
    explicit = atime not in {calls.UTIME_NOW, calls.UTIME_OMIT}
    return comparable_time(status.st_atime_ns) if explicit else "", comparable_time(
        status.st_mtime_ns
    )

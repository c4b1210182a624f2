"""What one caller can do on one side: a method for each operation of the fuzz test.

A result holds only what two file systems must agree upon. Left out, and why:

- inode numbers: each file system chooses its own (a mount's equal its source's, see tree.py);
- times of "now": the two sides act one after the other; what was set explicitly is compared;
- access times but the one just set: with pages cached, a read need not reach the host;
- sizes and blocks of directories: the layout of the host's file system, which follows its history;
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
"""The name of an error and nothing, or "ok" and the result, plain data."""

_LISTING_BYTES = 32 * 1024
_SHOWN_BYTES = 40
_NOW_WITHIN_NS = 3_600 * calls.NS_PER_S
FS_IOC_GETFLAGS = 0x8008_6601


def content(seed: int, size: int) -> bytes:
    """Return *size* bytes whose parts tell where they are from: 251 is a prime number."""
    block = bytes((seed * 37 + index) % 251 for index in range(251))
    return (block * (size // 251 + 1))[:size]


def moment(ns: int) -> int | str:
    """Return a time as it is comparable: what was not set explicitly is "now"."""
    return "now" if abs(ns - time.time_ns()) < _NOW_WITHIN_NS else ns


def attributes(status: os.stat_result) -> tuple[object, ...]:
    """Return what stat(2) says and both sides agree upon."""
    size = "" if stat.S_ISDIR(status.st_mode) else status.st_size
    return (
        *(oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid),
        *(size, status.st_rdev, moment(status.st_mtime_ns)),
    )


def shown(data: bytes) -> tuple[int, bytes | str]:
    """Return data as it is when short, else its length and hash."""
    return len(data), data if len(data) <= _SHOWN_BYTES else hashlib.sha256(data).hexdigest()


class PathHands:
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
        """Make *count* files that no other operation names, so that they last."""
        for number in range(count):
            name = b"%s/entry-%d-%d-%s" % (path, generation, number, b"long" * 10)
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

    def append(self, path: bytes, seed: int, size: int) -> str:
        """Append to a regular file and to nothing else, whatever the name leads to."""
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return "no file"
            os.write(fd, content(seed, size))
            return "appended"
        finally:
            os.close(fd)

    def fallocate(self, directory: bytes) -> None:
        """Reserve space for a file of its own: what was reserved would have other times, too."""
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


class HandleHands:
    """Operations on what is open, by a number that the program chose when it opened it."""

    def __init__(self) -> None:
        self.handles: dict[int, int] = {}
        self._first: dict[int, int] = {}
        """Of each number, the one that was opened: duplicates share its position."""
        self._streams: dict[int, tuple[int, list[bytes]]] = {}
        """Listings that have begun, by the number that was opened."""

    def open(self, handle: int, path: bytes, flags: int, mode: int) -> None:
        """Open, never waiting for the other end of a fifo."""
        self.handles[handle] = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, mode)
        self._first[handle] = handle

    def open_at(self, handle: int, directory: int, path: bytes, flags: int, mode: int) -> None:
        directory_fd = self.handles[directory]
        self.handles[handle] = os.open(path, flags | os.O_NONBLOCK, mode, dir_fd=directory_fd)
        self._first[handle] = handle

    def close(self, handle: int) -> None:
        os.close(self.handles.pop(handle))

    def dup(self, handle: int, other: int) -> None:
        self.handles[handle] = os.dup(self.handles[other])
        self._first[handle] = self._first[other]

    def read(self, handle: int, size: int) -> object:
        """Read from the position; in a directory that is a cookie, which may be out of range."""
        try:
            return shown(os.read(self.handles[handle], size))
        except OSError:
            if self._is_directory(handle):
                return "refused"
            raise

    def pread(self, handle: int, size: int, offset: int) -> object:
        return shown(os.pread(self.handles[handle], size, offset))

    def write(self, handle: int, seed: int, size: int) -> int:
        return os.write(self.handles[handle], content(seed, size))

    def pwrite(self, handle: int, seed: int, size: int, offset: int) -> int:
        return os.pwrite(self.handles[handle], content(seed, size), offset)

    def lseek(self, handle: int, offset: int, whence: int) -> int | str:
        """Move the position; in a directory it is a cookie that only its file system can read."""
        if self._is_directory(handle):
            return "opaque"
        return os.lseek(self.handles[handle], offset, whence)

    def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(self.handles[handle], size)

    def fsync(self, handle: int) -> None:
        os.fsync(self.handles[handle])

    def fdatasync(self, handle: int) -> None:
        os.fdatasync(self.handles[handle])

    def fstat(self, handle: int) -> object:
        return attributes(os.fstat(self.handles[handle]))

    def fchmod(self, handle: int, mode: int) -> None:
        os.fchmod(self.handles[handle], mode)

    def fchown(self, handle: int, uid: int, gid: int) -> None:
        os.fchown(self.handles[handle], uid, gid)

    def futimens(self, handle: int, atime: int, mtime: int) -> object:
        calls.utimensat(self.handles[handle], atime, mtime)
        return _time_set(atime, os.fstat(self.handles[handle]))

    def fsetxattr(self, handle: int, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self.handles[handle], name, value, flags)

    def fgetxattr(self, handle: int, name: bytes) -> object:
        return shown(os.getxattr(self.handles[handle], name))

    def flags(self, handle: int) -> str:
        return oct(fcntl.fcntl(self.handles[handle], fcntl.F_GETFL))

    def set_append(self, handle: int) -> None:
        """Make an open file append, fcntl(2) F_SETFL."""
        fd = self.handles[handle]
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)

    def clear_append(self, handle: int) -> None:
        """Take it off again; known.py has why this is nothing for random programs."""
        fd = self.handles[handle]
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_APPEND)

    def mapped_write(self, handle: int, seed: int, size: int, offset: int) -> str:
        """Store into a shared mapping; beyond the file's end that would be a fatal signal."""
        fd = self.handles[handle]
        if offset + size > os.fstat(fd).st_size:
            return "beyond the end"
        with mmap.mmap(fd, offset + size) as mapping:
            mapping[offset:] = content(seed, size)
            mapping.flush()
        return "stored"

    def mapped_read(self, handle: int) -> object:
        fd = self.handles[handle]
        size = os.fstat(fd).st_size
        if not size:
            return "empty"
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapping:
            return shown(mapping[:])

    def copy_range(self, source: int, target: int, size: int) -> int:
        return os.copy_file_range(self.handles[source], self.handles[target], size)

    def seek_data(self, handle: int, offset: int) -> object:
        """Ask for the hole after *offset*; the position stays."""
        fd = self.handles[handle]
        if self._is_directory(handle):
            return "opaque"
        position = os.lseek(fd, 0, os.SEEK_CUR)
        try:
            return os.lseek(fd, offset, os.SEEK_HOLE)
        finally:
            os.lseek(fd, position, os.SEEK_SET)

    def ioctl(self, handle: int) -> None:
        """Ask for the flags that chattr(1) sets; what they are is the host's."""
        fcntl.ioctl(self.handles[handle], FS_IOC_GETFLAGS, bytes(8))

    def relist(self, handle: int) -> list[tuple[bytes, int]]:
        """List all from the start: after rewinddir(3) a listing is as of now.

        One that has begun has no rest then, and how much of it was seen is the host's to choose.
        """
        os.lseek(self.handles[handle], 0, os.SEEK_SET)
        self._streams.pop(self._first[handle], None)
        return sorted(itertools.chain.from_iterable(self._chunks(handle)))

    def begin_listing(self, handle: int, size: int, generation: int) -> None:
        """Read the first names, as many as fit *size* bytes; which ones is the host's to choose.

        Up to *generation*, what `fill` makes is there now and lasts.
        """
        os.lseek(self.handles[handle], 0, os.SEEK_SET)
        chunk = calls.getdents64(self.handles[handle], size)
        self._streams[self._first[handle]] = generation, [name for name, _ in chunk]

    def end_listing(self, handle: int) -> object:
        """Read the rest, and return the names of the whole listing that last, as often as seen.

        Names that came or went meanwhile may show or not, readdir(3).
        """
        if self._first[handle] not in self._streams:
            return "not begun"
        generation, begun = self._streams.pop(self._first[handle])
        rest = [name for chunk in self._chunks(handle) for name, _ in chunk]
        lasting = [name for name in begun + rest if name.startswith(b"entry-")]
        return sorted(name for name in lasting if int(name.split(b"-")[1]) <= generation)

    def _is_directory(self, handle: int) -> bool:
        return stat.S_ISDIR(os.fstat(self.handles[handle]).st_mode)

    def _chunks(self, handle: int) -> Sequence[list[tuple[bytes, int]]]:
        fd = self.handles[handle]
        return list(iter(lambda: calls.getdents64(fd, _LISTING_BYTES), []))


class Hands(PathHands, HandleHands):
    """Everything that one caller does on one side, and what it has open there."""

    def act(self, operation: str, arguments: Sequence[object]) -> Outcome:
        """Do one operation; gives its outcome."""
        try:
            return "ok", getattr(self, operation)(*arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0], None
        except KeyError:  # whoever shortened the program left out the step that opens
            return "not open", None

    def begin(self, directory: bytes) -> None:
        """Start a program in *directory*, with the usual umask."""
        os.umask(0o022)
        os.chdir(directory)

    def end(self) -> None:
        """Close what is open."""
        for fd in self.handles.values():
            os.close(fd)
        self.handles.clear()
        self._first.clear()
        self._streams.clear()


def _time_set(atime: int, status: os.stat_result) -> object:
    """Return the times after they were set; an access time left alone is anybody's."""
    explicit = atime not in {calls.UTIME_NOW, calls.UTIME_OMIT}
    return moment(status.st_atime_ns) if explicit else "", moment(status.st_mtime_ns)

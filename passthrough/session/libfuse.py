"""The `libfuse` session: adapts pyfuse3 to the core.

A handler turns a request of pyfuse3 into the bytes that the kernel would send, and the core's reply
into pyfuse3's types. The handler calls the core without an await, so requests follow one another,
and no other request comes between a system call and its lookup count or identity.

`_answered` is the error boundary. A number that has no room in a request becomes EINVAL. Every
other exception is a bug: EIO, and a traceback in the log. pyfuse3 would end the mount on any.

pyfuse3 3.5 does not pass on fallocate, lseek, copy_file_range, locks, ioctl, statx, O_TMPFILE and
the flags of single reads and writes. The kernel emulates or refuses these, and keeps locks among
the users of the one mount.
"""

import errno
import functools
import logging
import struct
from collections.abc import Callable, Coroutine, Sequence
from itertools import chain
from typing import Any, Final, TypeVar

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    RequestContext,
    StatvfsData,
    XAttrNameT,
)

from passthrough.core import binding
from passthrough.core.face import Core
from passthrough.linux.kernel_features import linux_release
from passthrough.session import abi, wire
from passthrough.session.abi import Init, Opcode
from passthrough.session.kernel import Served

log = logging.getLogger(__name__)

R = TypeVar("R")

# The features that decide on the form of the requests of this module. pyfuse3 and libfuse negotiate
# others, which do not concern the core, and never HANDLE_KILLPRIV_V2.
_FEATURES: Final = Init.ATOMIC_O_TRUNC | Init.SETXATTR_EXT | Init.DO_READDIRPLUS
# XATTR_SIZE_MAX and XATTR_LIST_MAX, linux/limits.h.
_LONGEST_XATTR: Final = 1 << 16
_NO_UMASK: Final = 0  # the kernel has applied it

_GETATTR: Final = b"\0" * wire.GETATTR_IN.size
_OPENDIR: Final = b"\0" * wire.OPEN_IN.size


def serve(served: Served, fuse_fd: int, serving: Callable[[], object], scheduler: object) -> None:
    """Serve the mount of *fuse_fd* until an unmount, or until *scheduler* ends the session.

    *scheduler* stands in for pyfuse3's module trio (libfuse_run.py). A request that was taken
    is answered before an end: handlers never wait.
    Takes *fuse_fd*. Calls *serving* when the kernel has been greeted and requests are answered.
    One session per process: libfuse's binding is a module with one global session.

    Raises:
        OSError: *fuse_fd* is no descriptor of a FUSE mount, or the session with the kernel failed.
    """
    core = served.core
    operations = LibfuseOperations(core, serving)
    operations.enable_writeback_cache = served.config.writeback
    # pyfuse3 looks for its scheduler under this name; pyfuse3.asyncio replaces it there as well.
    pyfuse3.trio = scheduler  # type: ignore[attr-defined]
    try:
        # A "mount point" of this form makes libfuse take the descriptor and mount nothing itself.
        pyfuse3.init(operations, f"/dev/fd/{fuse_fd}", set())
    except RuntimeError as error:
        raise OSError(errno.EBADF, f"libfuse does not take descriptor {fuse_fd}: {error}") from None
    # libfuse keeps the number that the kernel has sent to itself.
    minor = abi.MINOR if linux_release() >= abi.MINOR_SINCE else abi.LEAST_MINOR
    core.agree(int(_FEATURES), minor, passthrough=False)
    core.use_device(fuse_fd)
    try:
        _finish(pyfuse3.main(max_tasks=1))
    finally:
        core.use_device(-1)
        pyfuse3.close(unmount=False)


def _finish(task: Coroutine[Any, Any, None]) -> None:
    """Run *task*, which never gives way: it does its waiting inside."""
    try:
        task.send(None)
    except StopIteration:
        return
    task.close()
    raise RuntimeError("pyfuse3 waits for something other than its next request")


def _answered(operation: Callable[..., R]) -> Callable[..., Coroutine[Any, Any, R]]:
    """Make a handler of a plain method: a coroutine that fails with an errno and nothing else."""

    @functools.wraps(operation)
    async def handler(self: "LibfuseOperations", /, *args: object) -> R:
        try:
            return operation(self, *args)
        except FUSEError:
            raise
        except (OverflowError, struct.error):
            raise FUSEError(errno.EINVAL) from None
        except Exception:
            log.exception("%s failed by a mistake of this program", operation.__name__)
            raise FUSEError(errno.EIO) from None

    return handler


class LibfuseOperations(pyfuse3.Operations):
    """pyfuse3's handlers, in its order; each a call of the core."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, core: Core, serving: Callable[[], object]) -> None:
        super().__init__()
        self._request = core.ask
        self._flags_of = core.flags_of
        self._trim = core.trim
        self._serving = serving

    def init(self) -> None:
        """The kernel's INIT was read; its answer is sent when this returns."""
        self._serving()

    @_answered
    def lookup(self, parent: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        return binding.entry(self._ask(Opcode.LOOKUP, parent, ctx, name + b"\0"))

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """FORGET has no reply, and pyfuse3 catches nothing around it."""
        count = len(inode_list)
        try:
            body = wire.BATCH_FORGET_IN.pack(count)
            pairs = struct.pack(f"={2 * count}Q", *chain.from_iterable(inode_list))
            self._ask_open(Opcode.BATCH_FORGET, body, pairs)
            self._trim()
        except Exception:
            log.exception("forget of %d inodes failed", count)

    @_answered
    def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return binding.attributes(self._ask(Opcode.GETATTR, inode, ctx, _GETATTR))

    @_answered
    def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        changes = binding.changes(attr, fields, fh)
        return binding.attributes(self._ask(Opcode.SETATTR, inode, ctx, changes))

    @_answered
    def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(self._ask(Opcode.READLINK, inode, ctx, b""))

    @_answered
    def mknod(
        self, parent: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        body = wire.MKNOD_IN.pack(mode, rdev, _NO_UMASK)
        return binding.entry(self._ask(Opcode.MKNOD, parent, ctx, body, name + b"\0"))

    @_answered
    def mkdir(
        self, parent: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        body = wire.MKDIR_IN.pack(mode, _NO_UMASK)
        return binding.entry(self._ask(Opcode.MKDIR, parent, ctx, body, name + b"\0"))

    @_answered
    def unlink(self, parent: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._ask(Opcode.UNLINK, parent, ctx, name + b"\0")

    @_answered
    def rmdir(self, parent: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._ask(Opcode.RMDIR, parent, ctx, name + b"\0")

    @_answered
    def symlink(
        self, parent: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        body = b"%b\0%b\0" % (name, target)
        return binding.entry(self._ask(Opcode.SYMLINK, parent, ctx, body))

    @_answered
    def rename(  # noqa: PLR0917 - pyfuse3 calls it so
        self,
        parent_old: InodeT,
        name_old: FileNameT,
        parent_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        body = wire.RENAME2_IN.pack(parent_new, flags)
        self._ask(Opcode.RENAME2, parent_old, ctx, body, b"%b\0%b\0" % (name_old, name_new))

    @_answered
    def link(
        self, inode: InodeT, new_parent: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        body = wire.LINK_IN.pack(inode)
        return binding.entry(self._ask(Opcode.LINK, new_parent, ctx, body, new_name + b"\0"))

    @_answered
    def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        return _opened(self._ask(Opcode.OPEN, inode, ctx, wire.OPEN_IN.pack(flags, 0)))

    @_answered
    def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        body = wire.READ_IN.pack(fh, off, size, 0, 0, self._flags_of(fh))
        return self._ask_open(Opcode.READ, body)

    @_answered
    def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        body = wire.WRITE_IN.pack(fh, off, len(buf), 0, 0, self._flags_of(fh))
        (written,) = wire.WRITE_OUT.unpack(self._ask_open(Opcode.WRITE, body, buf))
        return int(written)

    @_answered
    def flush(self, fh: FileHandleT) -> None:
        self._ask_open(Opcode.FLUSH, wire.FLUSH_IN.pack(fh, 0))

    @_answered
    def release(self, fh: FileHandleT) -> None:
        self._ask_open(Opcode.RELEASE, wire.RELEASE_IN.pack(fh, 0, 0, 0))

    @_answered
    def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        self._ask_open(Opcode.FSYNC, _fsync(fh, datasync))

    @_answered
    def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        fh, _, _ = wire.OPEN_OUT.unpack(self._ask(Opcode.OPENDIR, inode, ctx, _OPENDIR))
        return FileHandleT(fh)

    @_answered
    def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        body = wire.READ_IN.pack(fh, start_id, binding.room(token), 0, 0, 0)
        binding.deliver(token, self._ask_open(Opcode.READDIRPLUS, body))

    @_answered
    def releasedir(self, fh: FileHandleT) -> None:
        self._ask_open(Opcode.RELEASEDIR, wire.RELEASE_IN.pack(fh, 0, 0, 0))

    @_answered
    def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        self._ask_open(Opcode.FSYNCDIR, _fsync(fh, datasync))

    @_answered
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        return _statvfs(self._ask(Opcode.STATFS, InodeT(abi.ROOT_ID), ctx, b""))

    @_answered
    def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        body = b"%b%b\0" % (wire.SETXATTR_IN.pack(len(value), 0, 0), name)
        self._ask(Opcode.SETXATTR, inode, ctx, body, value)

    @_answered
    def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        room = wire.GETXATTR_IN.pack(_LONGEST_XATTR)
        return self._ask(Opcode.GETXATTR, inode, ctx, room, name + b"\0")

    @_answered
    def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        names = self._ask(Opcode.LISTXATTR, inode, ctx, wire.GETXATTR_IN.pack(_LONGEST_XATTR))
        return [XAttrNameT(name) for name in names.split(b"\0")[:-1]]

    @_answered
    def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        self._ask(Opcode.REMOVEXATTR, inode, ctx, name + b"\0")

    @_answered
    def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        self._ask(Opcode.ACCESS, inode, ctx, wire.ACCESS_IN.pack(mode))
        return True

    @_answered
    def create(
        self, parent: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        body = wire.CREATE_IN.pack(flags, mode, _NO_UMASK, 0)
        reply = self._ask(Opcode.CREATE, parent, ctx, body, name + b"\0")
        return _opened(reply[wire.ENTRY_OUT.size :]), binding.entry(reply)

    def _ask(
        self, opcode: int, nodeid: InodeT, ctx: RequestContext, body: bytes, more: bytes = b""
    ) -> bytes:
        """Request something of an inode for the caller *ctx*; return the body of the reply."""
        reply = self._request(opcode, nodeid, ctx.uid, ctx.gid, ctx.pid, body, more)
        if isinstance(reply, int):
            raise FUSEError(reply)
        return reply

    def _ask_open(self, opcode: int, body: bytes, more: bytes = b"") -> bytes:
        """Request something of what is open; return the body of the reply.

        pyfuse3 names neither the inode nor the caller. The core takes the caller for root: in a
        volume that squashes ids, a write then leaves no sgid bit that the caller might not keep.
        """
        reply = self._request(opcode, 0, 0, 0, 0, body, more)
        if isinstance(reply, int):
            raise FUSEError(reply)
        return reply


def _fsync(fh: FileHandleT, datasync: bool) -> bytes:
    return wire.FSYNC_IN.pack(fh, abi.FSYNC_FDATASYNC if datasync else 0)


def _opened(reply: bytes) -> FileInfo:
    fh, flags, _ = wire.OPEN_OUT.unpack(reply)
    return FileInfo(
        fh=FileHandleT(fh),
        direct_io=bool(flags & abi.FOPEN_DIRECT_IO),
        keep_cache=bool(flags & abi.FOPEN_KEEP_CACHE),
    )


def _statvfs(reply: bytes) -> StatvfsData:
    data = StatvfsData()
    fields = wire.STATFS_OUT.unpack(reply)
    data.f_blocks, data.f_bfree, data.f_bavail, data.f_files, data.f_ffree = fields[:5]
    data.f_bsize, data.f_namemax, data.f_frsize = fields[5:]
    data.f_favail = data.f_ffree  # for which FUSE has no field
    return data

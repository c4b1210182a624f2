"""The `libfuse` session: pyfuse3, wherever libfuse 3 runs.

An adapter and nothing more: a handler turns a request into one call on PassthroughFs, and its
result into pyfuse3's types. It runs that call inline, so operations follow one another; no await
stands between a system call and the lookup count or the identity that belongs to it.

`_answered` is the error boundary: an OSError becomes the reply's errno, a number that no system
call takes EINVAL, anything else is a bug, EIO and a traceback. pyfuse3 would end the mount on any.

What pyfuse3 3.5 cannot deliver: fallocate, lseek, copy_file_range, locks, ioctl, statx, O_TMPFILE,
and the flags of single reads and writes. The kernel emulates or refuses those, and keeps locks
among the users of the one mount.
"""

import contextlib
import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

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

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.listing import Record
from passthrough.core.names import DOTS
from passthrough.identity.attributes import OMIT, Attributes, Changes, Entry
from passthrough.identity.idmap import Caller, ContainerId, ContainerIds
from passthrough.linux.errors import os_error
from passthrough.linux.syscalls import RENAME_WHITEOUT

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_NS_PER_S: Final = 1_000_000_000


def serve(
    fs: PassthroughFs, fuse_fd: int, serving: Callable[[], object], scheduler: object
) -> None:
    """Serve *fs* on *fuse_fd*, whose mount is made, until it is unmounted or *scheduler* ends it.

    *scheduler* is what pyfuse3 takes for the module trio (libfuse_run.py). A request that was taken
    is answered before an end: handlers never wait.
    Takes *fuse_fd*. Calls *serving* when the kernel has been greeted and requests are answered.
    One session per process: libfuse's binding is a module with one global session.

    Raises:
        OSError: *fuse_fd* is no descriptor of a FUSE mount, or the session with the kernel failed.
    """
    fs.tell_lost_privileges(_forget_attributes)
    operations = LibfuseOperations(fs, serving)
    operations.enable_writeback_cache = fs.config.writeback
    # Where pyfuse3 looks for its scheduler; pyfuse3.asyncio replaces it there as well.
    pyfuse3.trio = scheduler  # type: ignore[attr-defined]
    try:
        # A "mount point" of this form makes libfuse take the descriptor and mount nothing itself.
        pyfuse3.init(operations, f"/dev/fd/{fuse_fd}", set())
    except RuntimeError as error:
        raise OSError(errno.EBADF, f"libfuse does not take descriptor {fuse_fd}: {error}") from None
    try:
        _finish(pyfuse3.main(max_tasks=1))
    finally:
        pyfuse3.close(unmount=False)


def _finish(task: Coroutine[Any, Any, None]) -> None:
    """Run *task*, which never gives way: it does its waiting inside."""
    try:
        task.send(None)
    except StopIteration:
        return
    task.close()
    raise RuntimeError("pyfuse3 waits for something other than its next request")


def _answered(
    operation: "Callable[Concatenate[LibfuseOperations, P], R]",
) -> "Callable[Concatenate[LibfuseOperations, P], Coroutine[Any, Any, R]]":
    """Make a handler of a plain method: a coroutine that fails with an errno and nothing else."""

    @functools.wraps(operation)
    async def handler(self: "LibfuseOperations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            if self._fs.squashes and isinstance(args[-1], RequestContext):
                with self._fs.asked_by(_caller(args[-1])):
                    return operation(self, *args, **kwargs)
            return operation(self, *args, **kwargs)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        except OverflowError:
            raise FUSEError(errno.EINVAL) from None
        except Exception:
            log.exception("%s failed by a mistake of this program", operation.__name__)
            raise FUSEError(errno.EIO) from None

    return handler


class LibfuseOperations(pyfuse3.Operations):
    """pyfuse3's handlers, in its order; each a call on PassthroughFs."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, fs: PassthroughFs, serving: Callable[[], object]) -> None:
        super().__init__()
        self._fs = fs
        self._serving = serving

    def init(self) -> None:
        """The kernel's INIT was read; its answer is sent when this returns."""
        self._serving()

    @_answered
    def lookup(self, parent: InodeT, name: FileNameT, _ctx: RequestContext) -> EntryAttributes:
        try:
            return _entry(self._fs.lookup(parent, name))
        except FileNotFoundError:
            if not self._fs.cache.absent:
                raise
            return _absent(self._fs.cache.absent)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """FORGET has no reply, and pyfuse3 catches nothing around it."""
        for number, count in inode_list:
            try:
                self._fs.forget(number, count)
            except Exception:
                log.exception("forget of inode %d failed", number)

    @_answered
    def getattr(self, inode: InodeT, _ctx: RequestContext) -> EntryAttributes:
        return _attributes(self._fs.getattr(inode))

    @_answered
    def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        changes = Changes(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=ContainerId(attr.st_uid) if fields.update_uid else None,
            gid=ContainerId(attr.st_gid) if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime=divmod(attr.st_atime_ns, _NS_PER_S) if fields.update_atime else OMIT,
            mtime=divmod(attr.st_mtime_ns, _NS_PER_S) if fields.update_mtime else OMIT,
        )
        # As in the other session without HANDLE_KILLPRIV_V2.
        writes = changes == Changes() and self._fs.open_for_writing(inode)
        clear = writes or (changes.size is not None and ctx.uid != 0)
        found = self._fs.setattr(inode, changes, fh, clear_privileges=clear, caller=_caller(ctx))
        return _attributes(found)

    @_answered
    def readlink(self, inode: InodeT, _ctx: RequestContext) -> FileNameT:
        return FileNameT(self._fs.readlink(inode))

    @_answered
    def mknod(
        self, parent: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return _entry(self._fs.mknod(parent, name, mode, rdev, _caller(ctx)))

    @_answered
    def mkdir(
        self, parent: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        return _entry(self._fs.mkdir(parent, name, stat.S_IMODE(mode), _caller(ctx)))

    @_answered
    def unlink(self, parent: InodeT, name: FileNameT, _ctx: RequestContext) -> None:
        self._fs.unlink(parent, name)

    @_answered
    def rmdir(self, parent: InodeT, name: FileNameT, _ctx: RequestContext) -> None:
        self._fs.rmdir(parent, name)

    @_answered
    def symlink(
        self, parent: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return _entry(self._fs.symlink(parent, name, target, _caller(ctx)))

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
        try:
            self._fs.rename(parent_old, name_old, parent_new, name_new, flags, _caller(ctx))
        except OSError:
            if flags & RENAME_WHITEOUT:
                # ext4 enters the whiteout first and takes it out again when the rename is refused:
                # the times of the directories change, and the kernel forgets them on success only.
                for parent in (parent_old, parent_new):
                    pyfuse3.invalidate_inode(parent, attr_only=True)
            raise

    @_answered
    def link(
        self, inode: InodeT, new_parent: InodeT, new_name: FileNameT, _ctx: RequestContext
    ) -> EntryAttributes:
        return _entry(self._fs.link(inode, new_parent, new_name))

    @_answered
    def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        # libfuse has ATOMIC_O_TRUNC negotiated, and its binding no way to say which opens shall
        # clear the bits. For root they stay, as with CAP_FSETID.
        clear = bool(flags & os.O_TRUNC) and ctx.uid != 0
        if self._fs.cache.refresh_on_open:
            # Of attributes alone: this takes no lock of the kernel that the open may hold.
            pyfuse3.invalidate_inode(inode, attr_only=True)
        handle = self._fs.open(inode, flags, clear_privileges=clear, caller=_caller(ctx))
        return self._opened(handle)

    @_answered
    def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return self._fs.read(fh, off, size)

    @_answered
    def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return self._fs.write(fh, off, buf)

    @_answered
    def flush(self, fh: FileHandleT) -> None:
        self._fs.flush(fh)

    @_answered
    def release(self, fh: FileHandleT) -> None:
        self._fs.release(fh)

    @_answered
    def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        self._fs.fsync(fh, datasync=datasync)

    @_answered
    def opendir(self, inode: InodeT, _ctx: RequestContext) -> FileHandleT:
        return FileHandleT(self._fs.opendir(inode))

    @_answered
    def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        delivered = False
        try:
            for record, entry in self._fs.readdirplus(fh, start_id):
                attributes = _dot(record) if entry is None else _entry(entry)
                name = FileNameT(record.name)
                if not pyfuse3.readdir_reply(token, name, attributes, record.end):
                    if entry is not None:
                        self._fs.forget(entry.inode_number, 1)
                    return
                delivered = True
        except OSError:
            # The kernel counts what was delivered only if the reply is a good one. It will ask
            # again from here, and an error that lasts is then the first thing to happen.
            if not delivered:
                raise

    @_answered
    def releasedir(self, fh: FileHandleT) -> None:
        self._fs.releasedir(fh)

    @_answered
    def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        self._fs.fsyncdir(fh, datasync=datasync)

    @_answered
    def statfs(self, _ctx: RequestContext) -> StatvfsData:
        return _statvfs(self._fs.statfs())

    @_answered
    def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, _ctx: RequestContext) -> None:
        self._fs.setxattr(inode, name, value)

    @_answered
    def getxattr(self, inode: InodeT, name: XAttrNameT, _ctx: RequestContext) -> bytes:
        return self._fs.getxattr(inode, name)

    @_answered
    def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        return [XAttrNameT(name) for name in self._fs.listxattr(inode, _caller(ctx))]

    @_answered
    def removexattr(self, inode: InodeT, name: XAttrNameT, _ctx: RequestContext) -> None:
        self._fs.removexattr(inode, name)

    @_answered
    def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        return self._fs.access(inode, mode, _caller(ctx))

    @_answered
    def create(
        self, parent: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        entry, handle = self._fs.create(parent, name, stat.S_IMODE(mode), flags, _caller(ctx))
        return self._opened(handle), _entry(entry)

    def _opened(self, handle: int) -> FileInfo:
        return FileInfo(fh=FileHandleT(handle), keep_cache=self._fs.cache.keep_pages)


def _forget_attributes(number: int) -> None:
    with contextlib.suppress(OSError):  # an inode unknown to the kernel, or the end
        pyfuse3.invalidate_inode(InodeT(number), attr_only=True)


def _caller(ctx: RequestContext) -> Caller:
    return Caller(ContainerId(ctx.uid), ContainerId(ctx.gid))


def _entry(entry: Entry) -> EntryAttributes:
    filled = _filled(entry.stat, entry.owner)
    # pyfuse3 has one field for both: the number that names the inode is the st_ino that users see.
    filled.st_ino = InodeT(entry.inode_number)
    filled.entry_timeout = entry.entry_timeout
    filled.attr_timeout = entry.attr_timeout
    return filled


def _absent(timeout: float) -> EntryAttributes:
    """That there is no such name, to be known for *timeout* seconds: an entry without inode."""
    filled = EntryAttributes()
    filled.st_ino = InodeT(0)
    filled.entry_timeout = timeout
    filled.attr_timeout = 0
    return filled


def _attributes(attributes: Attributes) -> EntryAttributes:
    filled = _filled(attributes.stat, attributes.owner)
    filled.st_ino = InodeT(attributes.number)
    filled.attr_timeout = attributes.timeout
    return filled


def _dot(record: Record) -> EntryAttributes:
    """`.` or `..`: the kernel takes number and type from it, and counts no lookup.

    Of other names it would: one that may not be looked up (squash) fails the listing.
    """
    if record.name not in DOTS:
        raise os_error(errno.EACCES)
    filled = EntryAttributes()
    filled.st_ino = InodeT(record.number)
    filled.st_mode = ModeT(stat.S_IFDIR)
    filled.entry_timeout = filled.attr_timeout = 0
    return filled


def _filled(attributes: os.stat_result, owner: ContainerIds | None) -> EntryAttributes:
    filled = EntryAttributes()
    filled.st_mode = ModeT(attributes.st_mode)
    filled.st_nlink = attributes.st_nlink
    filled.st_uid, filled.st_gid = owner or (attributes.st_uid, attributes.st_gid)
    filled.st_rdev = attributes.st_rdev
    filled.st_size = attributes.st_size
    filled.st_blksize = attributes.st_blksize
    filled.st_blocks = attributes.st_blocks
    filled.st_atime_ns = attributes.st_atime_ns
    filled.st_mtime_ns = attributes.st_mtime_ns
    filled.st_ctime_ns = attributes.st_ctime_ns
    return filled


def _statvfs(host: os.statvfs_result) -> StatvfsData:
    data = StatvfsData()
    for field in (
        *("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail"),
        *("f_files", "f_ffree", "f_favail", "f_namemax"),
    ):
        setattr(data, field, getattr(host, field))
    return data

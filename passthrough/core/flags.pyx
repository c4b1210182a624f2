"""The flags of files and their project ids, ioctl_iflags(2): the few ioctls that pass.

All others are refused as on a file system that has none, because the caller's kernel has checked
no right to them. TCGETS is the frequent one: Python's open() sends it for each file. It is refused
before the thread switches ids, where ids are squashed; then no inode has to be reachable. Before it
sends an ioctl that changes flags, the caller's kernel has checked that the caller owns the file or
has CAP_FOWNER. The flags of immutable and append-only files take CAP_LINUX_IMMUTABLE, which this
process lacks: changing these is refused to every caller.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from passthrough.core.abi cimport (
    FUSE_IOCTL_DIR, fuse_in_header, fuse_ioctl_in, fuse_ioctl_out,
)
from passthrough.core.identity cimport check_change, enter_keeping, leave_keeping
from passthrough.core.inodes cimport is_hidden, stat_inode
from passthrough.core.layout cimport (
    DIRECTORIES, FILES, Inode, OpenFile, inode_of, open_get,
)
from passthrough.core.libc cimport (
    EBADF, EINVAL, EIO, ENOTTY, EROFS, ESTALE, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR,
    FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, errno, fsxattr, ioctl, struct_stat,
)
from passthrough.core.notify cimport attributes_changed
from passthrough.core.squash cimport TRY_EITHER, as_caller
from passthrough.core.state cimport SQUASH_NONE, Thread

cdef enum:
    # The numbers of the FLAGS ones contain the size of `long`; the calls pass an `int`.
    FLAGS_BYTES = 4
    ATTRIBUTES_BYTES = 28  # struct fsxattr
    CALLER_ROOT = 0


cdef struct Asked:
    const OpenFile *file
    const fuse_ioctl_in *fixed
    const char *data


cdef int do_ioctl(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Read or change flags; a change moves the change time."""
    cdef const fuse_ioctl_in *fixed = <const fuse_ioctl_in *>arg
    cdef bint directory = fixed.flags & FUSE_IOCTL_DIR != 0
    cdef Asked asked
    cdef int result
    if n - sizeof(fuse_ioctl_in) != fixed.in_size:
        return -EIO
    asked.file = open_get(t.volume.tables, DIRECTORIES if directory else FILES, fixed.fh)
    if asked.file == NULL:
        return -EBADF
    if not _passes(fixed.cmd):
        return -ENOTTY
    asked.fixed, asked.data = fixed, arg + sizeof(fuse_ioctl_in)
    if t.volume.options.squash == SQUASH_NONE:
        result = _serve(t, &asked)
    else:
        result = as_caller(t, _serve, &asked, NULL, 0, NULL, 0, TRY_EITHER)
    if result < 0:
        return result
    if fixed.in_size:
        attributes_changed(t.volume, h.nodeid)
    memset(t.out, 0, sizeof(fuse_ioctl_out))
    return <int>sizeof(fuse_ioctl_out) + result


cdef inline bint _passes(uint32_t command) noexcept nogil:
    return (
        command == FS_IOC_GETFLAGS or command == FS_IOC_FSGETXATTR
        or command == FS_IOC_SETFLAGS or command == FS_IOC_FSSETXATTR
    )


cdef int _serve(Thread *t, void *data) noexcept nogil:
    cdef const Asked *asked = <const Asked *>data
    cdef uint32_t command = asked.fixed.cmd
    if command == FS_IOC_GETFLAGS:
        return _read(t, asked.file.fd, asked.fixed, FLAGS_BYTES)
    if command == FS_IOC_FSGETXATTR:
        return _read(t, asked.file.fd, asked.fixed, ATTRIBUTES_BYTES)
    if command == FS_IOC_SETFLAGS:
        return _change(t, asked.file, asked.fixed, asked.data, FLAGS_BYTES)
    return _change(t, asked.file, asked.fixed, asked.data, ATTRIBUTES_BYTES)


cdef int _read(Thread *t, int fd, const fuse_ioctl_in *fixed, uint32_t size) noexcept nogil:
    """Have the host write `size` bytes behind the fixed part of the answer; return `size`."""
    cdef char *answer = t.out + sizeof(fuse_ioctl_out)
    if fixed.out_size < size:
        return -EINVAL
    memset(answer, 0, size)
    if ioctl(fd, fixed.cmd, answer) < 0:
        return -errno
    return <int>size


cdef int _change(
    Thread *t, const OpenFile *file, const fuse_ioctl_in *fixed, const char *data, uint32_t size
) noexcept nogil:
    """Hand the host what the request brings, in a copy that is aligned; return 0.

    XFS takes suid and sgid bits away with such a change, unless the caller has CAP_FSETID: as
    elsewhere, that is user 0 as the volume sees it.
    """
    cdef fsxattr copy
    cdef bint keeps = t.request.uid == CALLER_ROOT
    cdef int error
    if t.volume.options.readonly:
        return -EROFS
    error = _check_change(t, file.nodeid)
    if error:
        return error
    if fixed.in_size != size:
        return -EINVAL
    memcpy(&copy, data, size)
    error = enter_keeping(t, NULL) if keeps else 0
    if error:
        return error
    if ioctl(file.fd, fixed.cmd, &copy) < 0:
        error = -errno
    if keeps:
        leave_keeping(t)
    return error


cdef int _check_change(Thread *t, uint64_t nodeid) noexcept nogil:
    """Refuse a change as `changing` does; it borrows no descriptor, for the file is open."""
    cdef const Inode *inode = inode_of(t.volume.tables, nodeid)
    cdef struct_stat st
    cdef int error
    if inode == NULL:
        return -ESTALE
    if is_hidden(t.volume, inode):
        return -EROFS
    if not t.volume.options.may_lack_owners:
        return 0
    error = stat_inode(t, inode, &st)
    return error if error else check_change(t.volume, &st)

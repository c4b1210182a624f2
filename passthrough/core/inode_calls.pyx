"""System calls on the inode behind an O_PATH descriptor, without a path where the kernel can.

A path of `path_of` serves every call. But the kernel walks through /proc to its end, which takes
longer than most of the calls. Some calls take the descriptor instead, with AT_EMPTY_PATH:

    fchownat(2)     always
    utimensat(2)    since Linux 5.8
    faccessat2(2)   since Linux 5.8
    fchmodat2(2)    since Linux 6.6

They act on the inode itself, also if the inode is a symlink.

Extended attributes of an O_PATH descriptor take a path, also with getxattrat(2) (Linux 6.13). A
regular file is read through an open file of the table, if there is one. A directory is read as
the path "." below itself, which takes a right to search it.
"""

from libc.stdint cimport int32_t

from passthrough.core.layout cimport ACQUIRE, FILES, RELAXED, OpenFile, Tables, load32, load64
from passthrough.core.libc cimport (
    AT_EACCESS, AT_EMPTY_PATH, AT_FDCWD, EACCES, EBADF, EINTR, ENOSYS, EPERM, S_IFDIR, S_IFREG,
    errno, fchmodat, fchownat, fgetxattr, flistxattr, getxattr, listxattr, off_t, syscall, truncate,
    utimensat,
)
from passthrough.core.state cimport PATH_ROOM, path_of

cdef enum:
    # Newer than the headers of Debian 12; the same on all architectures.
    SYS_FACCESSAT2 = 439
    SYS_FCHMODAT2 = 452
    SYS_GETXATTRAT = 464
    SYS_LISTXATTRAT = 465
    SLOTS_TO_SEARCH = 64  # takes a fraction of the walk through /proc


# struct xattr_args, linux/xattr.h of Linux 6.13
cdef struct xattr_args:
    uint64_t value
    uint32_t size
    uint32_t flags


cdef int known = 0


# Changes


cdef inline int _result(long returned) noexcept nogil:
    return -errno if returned < 0 else 0


cdef int set_times(const Volume *v, int fd, const timespec *times) noexcept nogil:
    """Set the times of access and modification, utimensat(2)."""
    cdef char path[PATH_ROOM]
    if known & TIMES:
        return _result(utimensat(fd, b"", times, AT_EMPTY_PATH))
    path_of(v, fd, path)
    return _result(utimensat(AT_FDCWD, path, times, 0))


cdef int set_mode(const Volume *v, int fd, uint32_t mode) noexcept nogil:
    """Set the mode, chmod(2)."""
    cdef char path[PATH_ROOM]
    if known & MODE:
        return _result(
            syscall(
                SYS_FCHMODAT2, <long>fd, <const char *>b"", <long>mode, <long>AT_EMPTY_PATH,
            )
        )
    path_of(v, fd, path)
    return _result(fchmodat(AT_FDCWD, path, mode, 0))


cdef int set_owner(int fd, uint32_t uid, uint32_t gid) noexcept nogil:
    """Set the owner, chown(2)."""
    return _result(fchownat(fd, b"", uid, gid, AT_EMPTY_PATH))


cdef int set_size(const Volume *v, int fd, uint64_t size) noexcept nogil:
    """Set the size of a regular file, truncate(2)."""
    cdef char path[PATH_ROOM]
    cdef int result = -EINTR
    path_of(v, fd, path)
    while result == -EINTR:
        result = _result(truncate(path, <off_t>size))
    return result


# Questions


cdef int may_access(int fd, int mask) noexcept nogil:
    """Return whether this thread has the rights `mask` (R_OK and so on) to a file, or -errno.

    With AT_EACCESS, faccessat2(2) goes by file system ids and effective capabilities. The C
    library's faccessat(3) may use real ids instead, for which the worker may do everything.
    So a kernel without the call, before Linux 5.8, gives no right.
    """
    cdef long flags = AT_EACCESS | AT_EMPTY_PATH
    if syscall(SYS_FACCESSAT2, <long>fd, <const char *>b"", <long>mask, flags) == 0:
        return 1
    return 0 if errno == EACCES or errno == EPERM or errno == ENOSYS else -errno


cdef ssize_t read_attributes(
    Thread *t, const Inode *inode, int fd, const char *name, char *out, size_t size
) noexcept nogil:
    """Read the value of an extended attribute, or for NULL the names of all; return the length.

    `fd` is a descriptor of the inode.
    """
    cdef char path[PATH_ROOM]
    cdef ssize_t length = -EBADF
    if inode.type == S_IFREG:
        length = _through_open_file(t.volume.tables, inode, name, out, size)
    elif inode.type == S_IFDIR and known & ATTRIBUTES and not t.powerless:
        length = _below_itself(fd, name, out, size)
    if length != -EBADF and length != -EACCES:
        return length
    path_of(t.volume, fd, path)
    length = getxattr(path, name, out, size) if name != NULL else listxattr(path, out, size)
    return -errno if length < 0 else length


cdef ssize_t _through_open_file(
    Tables *tables, const Inode *inode, const char *name, char *out, size_t size
) noexcept nogil:
    """Read through an open file of the inode; -EBADF: none is found.

    Another thread may close this file meanwhile, and the descriptor may become one of another file.
    RELEASE takes a file out of the table before it closes the descriptor. So the result is the
    inode's if the file is in the table afterwards.
    """
    cdef uint64_t fh = 0
    cdef const OpenFile *file = _open_file(tables, inode, &fh)
    cdef ssize_t length
    cdef int fd
    if file == NULL:
        return -EBADF
    fd = load32(&file.fd, RELAXED)
    if name != NULL:
        length = fgetxattr(fd, name, out, size)
    else:
        length = flistxattr(fd, out, size)
    if length < 0:
        length = -errno
    return length if load64(&file.fh, ACQUIRE) == fh else -EBADF


cdef const OpenFile *_open_file(Tables *tables, const Inode *inode, uint64_t *fh) noexcept nogil:
    """Find a file of the inode among the first open ones; NULL: there is none."""
    cdef uint32_t end = <uint32_t>load32(<int32_t *>&tables.header.open_end[FILES], RELAXED)
    cdef const OpenFile *file
    cdef uint32_t index
    if not load32(<const int32_t *>&inode.opens, RELAXED):
        return NULL
    for index in range(1, min(end, <uint32_t>SLOTS_TO_SEARCH)):
        file = &tables.opens[FILES][index]
        fh[0] = load64(&file.fh, ACQUIRE)
        if <uint32_t>fh[0] == index and load64(&file.nodeid, ACQUIRE) == inode.nodeid:
            return file
    return NULL


cdef ssize_t _below_itself(int fd, const char *name, char *out, size_t size) noexcept nogil:
    """Read the attributes of a directory as those of "." in it."""
    cdef xattr_args given
    cdef long length
    if name != NULL:
        given.value, given.size, given.flags = <uint64_t>out, <uint32_t>size, 0
        length = syscall(
            SYS_GETXATTRAT, <long>fd, <const char *>b".", 0L, name, &given, sizeof(xattr_args)
        )
    else:
        length = syscall(SYS_LISTXATTRAT, <long>fd, <const char *>b".", 0L, out, size)
    return -errno if length < 0 else length


# The kernel


cdef int use_calls(int calls) noexcept nogil:
    """Use paths in place of all other calls, in a test; return the calls used before."""
    global known
    cdef int before = known
    known = calls
    return before


cdef int _find_calls() noexcept nogil:
    """Return the calls that this kernel has, and lets this process make.

    Without a descriptor these say EBADF, and others EINVAL, ENOSYS, or EPERM.
    """
    cdef timespec times[2]
    cdef char byte
    cdef int found = 0
    cdef long changed
    times[0].tv_sec = times[0].tv_nsec = times[1].tv_sec = times[1].tv_nsec = 0
    if utimensat(-1, b"", times, AT_EMPTY_PATH) < 0 and errno == EBADF:
        found |= TIMES
    changed = syscall(SYS_FCHMODAT2, -1L, <const char *>b"", 0L, <long>AT_EMPTY_PATH)
    if changed < 0 and errno == EBADF:
        found |= MODE
    if _below_itself(-1, b"user.a", &byte, 1) == _below_itself(-1, NULL, &byte, 1) == -EBADF:
        found |= ATTRIBUTES
    return found


known = _find_calls()

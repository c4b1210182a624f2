"""Chooses the flags of a caller's open(2) that reach the host, and opens existing files.

A file is opened twice: by the caller in its own kernel, and here. The host does not get a flag that
has had its effect already, or that would have another effect here. O_APPEND goes with each write:
the kernel writes the pages of a mapped file back through any descriptor, to where they belong. With
`writeback` the kernel appends by itself, and reads the rest of a partial page through any open
descriptor, so that each descriptor must be readable.

O_DIRECT reaches the host with the caller's offset and size; data.pyx has the rest of it. fcntl(2)
changes O_APPEND, O_DIRECT and O_SYNC of an open file, so each read and write brings its own.

Only regular files and directories are opened. To open a device, fifo or socket here would act on
the host's (CVE-2020-35517).

If ids are squashed, a thread without capabilities opens first, by the flags of the caller. If
the options add something, the worker itself opens the same file again. The owner alone may use
O_NOATIME, which atime=noatime adds without a sandbox. `writeback` needs a right to read that the
caller may lack.
"""

from passthrough.core.inodes cimport Loan, borrow, give_back
from passthrough.core.libc cimport (
    AT_FDCWD, EBADF, EINTR, EINVAL, O_ACCMODE, O_APPEND, O_CLOEXEC, O_CREAT, O_DIRECT, O_EXCL,
    O_NOATIME, O_NOCTTY, O_NOFOLLOW, O_PATH, O_RDONLY, O_RDWR, O_SYNC, O_TMPFILE, O_TRUNC,
    O_WRONLY, close, errno, open_again, openat,
)
from passthrough.core.powerless cimport enter_itself, leave_itself
from passthrough.core.state cimport PATH_ROOM, path_of


cdef int _existing_flags(const Options *o, int flags) noexcept nogil:
    """Return the flags for opening, through /proc/self/fd, what is there."""
    if o.writeback and flags & O_ACCMODE == O_WRONLY:
        flags = flags & ~O_ACCMODE | O_RDWR
    flags = _asked_flags(o, flags)
    return flags | O_NOATIME if o.noatime else flags


cdef int _asked_flags(const Options *o, int flags) noexcept nogil:
    """Return the flags for opening what is there, without what the options add.

    The file exists, and the link in /proc has to be followed. It becomes no terminal of the worker.
    With O_PATH, open(2) ignores most other flags; the kernel sends no such request.
    """
    flags &= ~(O_CREAT | O_EXCL | O_NOFOLLOW | O_NOCTTY | O_APPEND | O_PATH)
    if not o.allow_direct_io:
        flags &= ~O_DIRECT
    return flags | O_CLOEXEC


cdef int created_flags(const Options *o, int flags) noexcept nogil:
    """Return the flags for making a file by name, and no other than a new one."""
    return _existing_flags(o, flags) | O_CREAT | O_EXCL | O_NOFOLLOW


cdef int unnamed_flags(const Options *o, int flags) noexcept nogil:
    """Return the flags for making a file without a name; with O_EXCL it never gets one."""
    return _existing_flags(o, flags) | O_TMPFILE | flags & O_EXCL


cdef int request_flags(const Options *o, int flags) noexcept nogil:
    """Return the part of an open file's flags that a single read or write has to follow."""
    cdef int followed = O_SYNC
    if not o.writeback:
        followed |= O_APPEND
    if o.allow_direct_io:
        followed |= O_DIRECT
    return flags & followed


cdef bint opening_changes(int flags) noexcept nogil:
    """Return whether opening changes the file, or lets it be changed."""
    return flags & O_ACCMODE != O_RDONLY or flags & O_TRUNC != 0


cdef int open_path(const char *path, int flags) noexcept nogil:
    """Open a path of `path_of`; return a descriptor or -errno. A signal does not end the call."""
    cdef int fd
    while True:
        fd = openat(AT_FDCWD, path, flags)
        if fd >= 0:
            return fd
        if errno != EINTR:
            return -errno


cdef int open_o_path(const Volume *v, int fd) noexcept nogil:
    """Open the file behind a descriptor with O_PATH; return a descriptor or -errno.

    A filter of system calls may refuse open_tree(2). By the link in /proc it takes twice the time.
    """
    cdef char path[PATH_ROOM]
    cdef int held = open_again(fd)
    if held >= 0:
        return held
    path_of(v, fd, path)
    return open_path(path, O_PATH | O_CLOEXEC)


cdef int reopen(Thread *t, const Inode *inode, uint32_t type, int flags) noexcept nogil:
    """Open an inode for real, if it is of this type; return a descriptor or -errno.

    EBADF: it has another type.
    """
    cdef Loan loan
    cdef int fd
    if inode.type != type:
        return -EBADF
    fd = borrow(t, inode, &loan)
    if fd < 0:
        return fd
    fd = reopen_lent(t, loan.fd, flags)
    give_back(t, &loan)
    return fd


cdef int reopen_lent(Thread *t, int lent, int flags) noexcept nogil:
    """Open the regular file or directory behind a descriptor of it, as `reopen`."""
    cdef char path[PATH_ROOM]
    cdef int asked, wanted, fd, again
    cdef bint entered
    if flags < 0:  # a bit that open(2) has no room for
        return -EINVAL
    wanted = _existing_flags(&t.volume.options, flags)
    path_of(t.volume, lent, path)
    if not t.powerless:
        return open_path(path, wanted)
    asked = _asked_flags(&t.volume.options, flags)
    fd = open_path(path, asked)
    if fd < 0 or asked == wanted:
        return fd
    path_of(t.volume, fd, path)
    entered = enter_itself(t)
    again = open_path(path, wanted & ~O_TRUNC)
    leave_itself(t, entered)
    close(fd)
    return again

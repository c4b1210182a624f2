"""OPEN, CREATE, TMPFILE: a regular file is opened for a caller.

**OPEN.** If the host has taken the last name of a file away, the answer is ESTALE, once. The kernel
then looks the path up again, and opens what it leads to now. A process that has the file open, or
an O_PATH descriptor of it, may open it again through /proc. With O_TRUNC the worker decides on suid
and sgid bits (`_clears`): the kernel takes them away itself before every other change of content.

**CREATE** comes for names that the kernel believes are free. If one is not, another process was
faster, and no check has shown that the caller may open that file. The answer is EEXIST if the
caller asked for it by O_EXCL. Otherwise it is ESTALE: the kernel looks the name up, and opens the
file under its own check of permissions. The entry of a new file is that of its descriptor, because
the name may lead to another file by now.

**no_open** (files.pyx). The kernel sends no RELEASE, so CREATE answers with no open file: fh 0.

**Served again** (repeated.pyx). CREATE finds the file that the dead worker has made, and opens it
for the worker itself: the mode of a new file need not let the caller open it. TMPFILE makes another
file, because the first went with its descriptor. O_TRUNC truncates twice, also what a process of
the host has written meanwhile.
"""

from libc.stdint cimport uint64_t

from passthrough.core.abi cimport (
    FOPEN_KEEP_CACHE, FUSE_HANDLE_KILLPRIV_V2, FUSE_OPEN_KILL_SUIDGID, fuse_create_in,
    fuse_entry_out, fuse_open_in, fuse_open_out,
)
from passthrough.core.attributes cimport fill_entry
from passthrough.core.files cimport add_file
from passthrough.core.forgotten cimport take_lookup_back
from passthrough.core.grants cimport Entry, grant_fd, pin_fd
from passthrough.core.identity cimport (
    check_open, enter_caller, enter_content, leave_caller, leave_content, set_umask,
)
from passthrough.core.inodes cimport (
    Loan, borrow_node, changing, give_back, is_stale, is_stale_fd,
)
from passthrough.core.layout cimport Inode, may_open, some_by_handle
from passthrough.core.libc cimport (
    EACCES, EBADF, EEXIST, EINTR, EINVAL, EIO, ENFILE, ENOENT, ENOSYS, EPERM, EROFS, ESTALE,
    O_EXCL, O_TRUNC, S_IFREG, S_ISGID, close, errno, fstat, openat, struct_stat,
)
from passthrough.core.names cimport check_name
from passthrough.core.notify cimport attributes_changed
from passthrough.core.opening cimport (
    FOR_EXECUTION, created_flags, open_o_path, opening_changes, reopen_lent, unnamed_flags,
)
from passthrough.core.powerless cimport enter_itself, leave_itself
from passthrough.core.repeated cimport find_made
from passthrough.core.squash cimport may_execute, without_sgid
from passthrough.core.state cimport Options, only_text, uses
from passthrough.core.steps cimport MADE, note_call, step


cdef enum:
    ROOT_USER = 0
    PERMISSIONS = 0o7777


# Opened


cdef int do_open(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Open a regular file."""
    cdef const fuse_open_in *asked = <const fuse_open_in *>arg
    cdef int flags = <int>asked.flags
    cdef struct_stat st
    cdef bint entered
    cdef int fd, result
    if t.volume.options.no_open:
        return -ENOSYS  # from then on the kernel opens without a request
    if not may_open(t.volume.tables, h.uid):
        return -ENFILE
    if t.powerless and flags & FOR_EXECUTION:
        result = _check_execution(t, h.nodeid)
        if result < 0:
            return result
        # A file need not be readable to be executed.
        entered = enter_itself(t)
        fd = _open_existing(t, h.nodeid, flags, False, &st)
        leave_itself(t, entered)
    else:
        fd = _open_existing(t, h.nodeid, flags, _clears(t, h, asked), &st)
    if fd < 0:
        return fd
    if t.volume.options.refresh_on_open:
        result = attributes_changed(t.volume, h.nodeid)
        if result < 0 and result != -ENOENT:  # an inode that the kernel does not know yet
            close(fd)
            return result
    result = add_file(
        t, h.nodeid, fd, flags, NULL if flags & O_TRUNC else &st, <fuse_open_out *>t.out
    )
    return result if result < 0 else <int>sizeof(fuse_open_out)


cdef bint _clears(
    Thread *t, const fuse_in_header *h, const fuse_open_in *asked
) noexcept nogil:
    """Return whether truncating on open takes suid and sgid bits away.

    Without HANDLE_KILLPRIV_V2 the kernel does not say which callers keep them: root does, as with
    CAP_FSETID.
    """
    if uses(t, FUSE_HANDLE_KILLPRIV_V2):
        return asked.open_flags & FUSE_OPEN_KILL_SUIDGID != 0
    return <int>asked.flags & O_TRUNC != 0 and h.uid != ROOT_USER


cdef int _check_execution(Thread *t, uint64_t nodeid) noexcept nogil:
    """Return 0 if a powerless thread may execute the file, or -errno."""
    cdef Inode *inode = NULL
    cdef Loan loan
    cdef int result = borrow_node(t, nodeid, &inode, &loan)
    if result < 0:
        return result
    result = may_execute(t, loan.fd) if inode.type == S_IFREG else 0
    give_back(t, &loan)
    if result < 0:
        return result
    return 0 if result else -EACCES


cdef int _open_existing(
    Thread *t, uint64_t nodeid, int flags, bint clears, struct_stat *st
) noexcept nogil:
    """Open a file for a caller; return its descriptor or -errno.

    `st` gets its attributes: those before O_TRUNC.
    """
    cdef const Options *o = &t.volume.options
    cdef Inode *inode = NULL
    cdef Loan loan
    cdef int fd, result
    if o.readonly and opening_changes(flags):
        return -EROFS
    if o.seal_size and flags & O_TRUNC:
        return -EPERM
    result = borrow_node(t, nodeid, &inode, &loan)
    if result < 0:
        return result
    if flags & O_TRUNC or o.may_lack_owners or inode.type != S_IFREG:
        fd = _open_checked(t, inode, loan.fd, flags, clears, st)
    else:
        # Opening changes nothing, so one fstat(2) after it says enough.
        fd = reopen_lent(t, loan.fd, flags)
        result = _check_linked(t, inode, loan.fd if fd < 0 else fd, st)
        if result < 0:
            if fd >= 0:
                close(fd)
            fd = result
    give_back(t, &loan)
    return fd


cdef int _open_checked(
    Thread *t, Inode *inode, int lent, int flags, bint clears, struct_stat *st
) noexcept nogil:
    """Open a file after all checks, with the suid and sgid bits that it is to have then."""
    cdef int fd
    cdef int result = _check_linked(t, inode, lent, st)
    if result == 0 and t.volume.options.may_lack_owners:
        result = check_open(t.volume, st, flags)
    if result == 0 and inode.type != S_IFREG:
        result = -EBADF
    if result == 0 and flags & O_TRUNC:
        result = enter_content(t, st, clears, False)
    if result < 0:
        return result
    fd = reopen_lent(t, lent, flags)
    step(t, MADE)
    if flags & O_TRUNC:
        leave_content(t, st, clears, inode.nodeid)
    return fd


cdef int _check_linked(Thread *t, Inode *inode, int fd, struct_stat *st) noexcept nogil:
    """Get the attributes; ESTALE if the path may lead to another file by now."""
    if fstat(fd, st) < 0:
        return -errno
    return -ESTALE if is_stale(t, inode, st) else 0


# Created


cdef int do_create(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Create and open a regular file."""
    cdef const fuse_create_in *asked = <const fuse_create_in *>arg
    cdef const char *name = only_text(arg, n, sizeof(fuse_create_in))
    cdef int result
    set_umask(t, asked.umask)
    if name == NULL:
        return -EIO
    result = check_name(name)
    if result < 0:
        return result
    if t.volume.options.seal_size and <int>asked.flags & O_TRUNC:
        return -EPERM
    return _create(t, h, asked, name)


cdef int do_tmpfile(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Create and open a regular file without a name, O_TMPFILE of open(2).

    LINK may give it a name later. The name in the request means nothing.
    """
    cdef const fuse_create_in *asked = <const fuse_create_in *>arg
    if only_text(arg, n, sizeof(fuse_create_in)) == NULL:
        return -EIO
    set_umask(t, asked.umask)
    return _create(t, h, asked, NULL)


cdef int _create(
    Thread *t, const fuse_in_header *h, const fuse_create_in *asked, const char *name
) noexcept nogil:
    """Create a file by this name, or without one if `name` is NULL; write the reply."""
    cdef int flags = <int>asked.flags
    cdef uint32_t mode = asked.mode & PERMISSIONS
    cdef Inode *directory = NULL
    cdef Loan loan
    cdef int fd, result
    if not may_open(t.volume.tables, h.uid):
        return -ENFILE
    result = changing(t, h.nodeid, &directory, &loan)
    if result < 0:
        return result
    fd = _mode_of(t, loan.fd, &mode)
    if fd == 0:
        fd = enter_caller(t, mode)
    if fd == 0:
        fd = _make(t, loan.fd, name, flags, mode)
        step(t, MADE)
        leave_caller(t)
    if fd == -EEXIST and name != NULL:
        fd = _open_made(t, directory, loan.fd, name, flags)
    if fd == -ENOENT and is_stale_fd(t, directory, loan.fd):
        fd = -ESTALE
    give_back(t, &loan)
    if fd == -EEXIST and name != NULL and not flags & O_EXCL:
        return -ESTALE
    if fd < 0:
        return fd
    return _reply_created(t, fd, flags, directory.place, name == NULL)


cdef int _make(Thread *t, int dir_fd, const char *name, int flags, uint32_t mode) noexcept nogil:
    """Make a file as the caller; return its descriptor or -errno."""
    cdef int wanted, fd
    if flags < 0:  # a bit that open(2) has no room for
        return -EINVAL
    if name == NULL:
        name = b"."
        wanted = unnamed_flags(&t.volume.options, flags)
    else:
        wanted = created_flags(&t.volume.options, flags)
    note_call(t)
    while True:
        fd = openat(dir_fd, name, wanted, mode)
        if fd >= 0:
            return fd
        if errno != EINTR:
            return -errno


cdef int _open_made(
    Thread *t, const Inode *directory, int dir_fd, const char *name, int flags
) noexcept nogil:
    """Open the file that a dead worker has made for this request; -EEXIST: there is none."""
    cdef int held = find_made(t, directory, dir_fd, name, S_IFREG, 0)
    cdef bint entered
    cdef int fd
    if held < 0:
        return held
    entered = enter_itself(t)
    fd = reopen_lent(t, held, flags & ~O_TRUNC)
    leave_itself(t, entered)
    close(held)
    return fd


cdef int _mode_of(Thread *t, int dir_fd, uint32_t *mode) noexcept nogil:
    """Take S_ISGID from the mode of a new file where squashing wants it; return 0 or -errno."""
    cdef struct_stat st
    if not t.powerless or not mode[0] & S_ISGID:
        return 0
    if fstat(dir_fd, &st) < 0:
        return -errno
    mode[0] = without_sgid(t, &st, mode[0])
    return 0


cdef int _reply_created(
    Thread *t, int fd, int flags, uint32_t place, bint unnamed
) noexcept nogil:
    """Write the reply for a new file; takes its descriptor.

    `place` is that of the directory: a new file has nothing mounted on it.
    """
    cdef fuse_open_out *out = <fuse_open_out *>(t.out + sizeof(fuse_entry_out))
    cdef Entry entry
    cdef int held = open_o_path(t.volume, fd)
    cdef int result
    result = held if held < 0 else grant_fd(t, held, place, &entry)
    if result < 0:
        close(fd)
        return result
    if t.volume.options.no_open:
        out[0] = fuse_open_out(fh=0, open_flags=FOPEN_KEEP_CACHE, backing_id=0)
    else:
        result = add_file(t, entry.granted.nodeid, fd, flags, &entry.st, out)
    if result < 0:
        take_lookup_back(t, entry.granted.nodeid)
        return result
    if unnamed and some_by_handle(t.volume.tables):
        # Not a copy of `fd`: one that can write would keep the file from being executed.
        held = open_o_path(t.volume, fd)
        # Without a pin, the next file may get the number of this one.
        if held >= 0 and not pin_fd(t.volume.tables, held, place):
            close(held)
    if t.volume.options.no_open:
        close(fd)
    fill_entry(t, &entry, <fuse_entry_out *>t.out)
    return sizeof(fuse_entry_out) + sizeof(fuse_open_out)

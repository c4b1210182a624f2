"""Names in directories: looked up, forgotten, given and taken away.

A name is one component, so that no name leads out of its directory. `.` and `..` of LOOKUP come
only from open_by_handle_at(2) on the mount; find_dot knows where they lead.

The kernel has checked the caller's permissions before it sends a request (default_permissions). A
handler adds the caller's identity to the one system call that creates. The handler then looks the
new name up, because another process may have replaced the file by then. That lookup is the one that
the reply gives to the kernel.

unlink(2) and rmdir(2) act on names: both check first that the file has no unmapped owner
(`check_named`). If the file is held by handle, the removal leaves a descriptor of it until FORGET.
Otherwise the next new file could get its st_ino while the kernel still knows the removed file.

**Served again** (repeated.pyx). EEXIST is success for a new name, if the dead worker has made that
file: one of the type, with the target or of the inode in the request, that is not older than the
note of the call. ENOENT is success for a removal, if the directory has changed since then. A name
that leads to a file born later is not removed: it is the file of another process.

The host may have replaced a directory that the kernel still knows. Nothing can be made in it
(ENOENT), so the answer is ESTALE, once: the kernel looks the path up again (`is_stale`).
"""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.abi cimport (
    fuse_batch_forget_in, fuse_entry_out, fuse_forget_in, fuse_forget_one, fuse_in_header,
    fuse_link_in, fuse_mkdir_in, fuse_mknod_in,
)
from passthrough.core.attributes cimport fill_absent, fill_entry
from passthrough.core.forgotten cimport forget_lookups
from passthrough.core.grants cimport Entry
from passthrough.core.identity cimport (
    check_named, check_node, enter_caller, leave_caller, set_umask,
)
from passthrough.core.inodes cimport (
    Loan, borrow, borrow_node, changing, give_back, is_hidden, is_stale_fd,
)
from passthrough.core.layout cimport BY_HANDLE, Inode, flags_of, inode_of
from passthrough.core.libc cimport (
    AT_FDCWD, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, EEXIST, EINVAL, EIO, ENOENT, ESTALE, PATH_MAX,
    S_IFDIR, S_IFMT, S_ISGID, errno, fstat, linkat, mkdirat, mknodat, readlinkat, ssize_t,
    struct_stat, symlinkat, unlinkat,
)
from passthrough.core.names cimport (
    IS_KNOWN, IS_NEW, UNSURE, Expected, Removal, begin_removal, check_name, end_removal, find_dot,
    find_name,
)
from passthrough.core.repeated cimport (
    is_another, was_linked, was_made, was_made_for, was_removed,
)
from passthrough.core.squash cimport without_sgid
from passthrough.core.state cimport NO_ANSWER, PATH_ROOM, Thread, only_text, path_of
from passthrough.core.steps cimport MADE, note_call, step

cdef enum:
    PERMISSIONS = 0o7777
    LARGEST_MODE = 0x7FFFFFFF


# Found and forgotten


cdef int do_lookup(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Find a name; the kernel may remember, too, that there is none."""
    cdef const char *name = only_text(arg, n, 0)
    cdef Entry entry
    cdef int error
    if name == NULL:
        return -EIO
    error = _find(t, h.nodeid, name, &entry)
    if not error:
        return _reply_entry(t, &entry)
    if error != -ENOENT or not fill_absent(t, <fuse_entry_out *>t.out):
        return error
    return sizeof(fuse_entry_out)


cdef int _find(Thread *t, uint64_t parent, const char *name, Entry *entry) noexcept nogil:
    cdef Inode *directory = inode_of(t.volume.tables, parent)
    cdef Loan loan
    cdef int error
    if directory == NULL:
        return -ESTALE
    if name[0] == b'.' and (name[1] == 0 or (name[1] == b'.' and name[2] == 0)):
        return find_dot(t, directory, name[1] != 0, entry)
    error = check_name(name)
    if error:
        return error
    if is_hidden(t.volume, directory):
        return -ENOENT
    error = borrow(t, directory, &loan)
    if error:
        return error
    error = find_name(t, directory, loan.fd, name, UNSURE, entry)
    give_back(t, &loan)
    return error


cdef inline int _reply_entry(Thread *t, const Entry *entry) noexcept nogil:
    fill_entry(t, entry, <fuse_entry_out *>t.out)
    return sizeof(fuse_entry_out)


cdef int do_forget(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Give lookups of one inode back, unless a predecessor has."""
    if not t.journal.settled:
        forget_lookups(t, h.nodeid, (<const fuse_forget_in *>arg).nlookup)
    return NO_ANSWER


cdef int do_batch_forget(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """Give lookups of many inodes back, of none if the request is shorter than its count says."""
    cdef uint64_t count = (<const fuse_batch_forget_in *>arg).count
    cdef const fuse_forget_one *rows = <const fuse_forget_one *>(
        arg + sizeof(fuse_batch_forget_in)
    )
    cdef uint64_t at
    if count * sizeof(fuse_forget_one) > n - sizeof(fuse_batch_forget_in):
        return -EIO
    for at in range(t.journal.settled, count):  # a predecessor may have come to there
        forget_lookups(t, rows[at].nodeid, rows[at].nlookup)
    return NO_ANSWER


cdef int do_readlink(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """Return the text of a symlink; the kernel takes one byte less than PATH_MAX."""
    cdef Inode *inode = NULL
    cdef Loan loan
    cdef ssize_t length
    cdef int error = borrow_node(t, h.nodeid, &inode, &loan)
    if error:
        return error
    length = readlinkat(loan.fd, b"", t.out, PATH_MAX - 1)
    if length < 0:
        length = -errno
    give_back(t, &loan)
    return <int>length


# Given


cdef int do_mknod(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Create a file, fifo, socket or device node, with the mode as the caller's umask left it."""
    cdef const fuse_mknod_in *fixed = <const fuse_mknod_in *>arg
    cdef const char *name = only_text(arg, n, sizeof(fuse_mknod_in))
    cdef uint32_t mode = fixed.mode
    cdef Inode *directory = NULL
    cdef Loan loan
    cdef struct_stat st
    cdef int error
    _apply_umask(t, fixed.umask)
    error = _named(name)
    if not error:
        error = check_node(t.volume, mode)
    if not error:
        error = changing(t, h.nodeid, &directory, &loan)
    if error:
        return error
    if mode & S_ISGID and t.powerless:
        if fstat(loan.fd, &st):
            error = -errno
        else:
            mode = without_sgid(t, &st, mode)
    if not error:
        error = enter_caller(t, mode)
    if not error:
        # The system call itself would cut the mode to 16 bits.
        note_call(t)
        if mode > LARGEST_MODE:
            error = -EINVAL
        elif mknodat(loan.fd, name, mode, fixed.rdev):
            error = -errno
        step(t, MADE)
        leave_caller(t)
    if error == -EEXIST and was_made(t, directory, loan.fd, name, mode & S_IFMT, fixed.rdev):
        error = 0
    return _created(t, directory, &loan, name, error)


cdef int do_mkdir(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Create a directory, with the mode as the caller's umask left it."""
    cdef const fuse_mkdir_in *fixed = <const fuse_mkdir_in *>arg
    cdef const char *name = only_text(arg, n, sizeof(fuse_mkdir_in))
    cdef Inode *directory = NULL
    cdef Loan loan
    cdef int error
    _apply_umask(t, fixed.umask)
    error = _named(name)
    if not error:
        error = changing(t, h.nodeid, &directory, &loan)
    if error:
        return error
    error = enter_caller(t, 0)
    if not error:
        note_call(t)
        if mkdirat(loan.fd, name, fixed.mode & PERMISSIONS):
            error = -errno
        step(t, MADE)
        leave_caller(t)
    if error == -EEXIST and was_made(t, directory, loan.fd, name, S_IFDIR, 0):
        error = 0
    return _created(t, directory, &loan, name, error)


cdef int do_symlink(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """Create a symlink to a target, which is stored as it is."""
    cdef const char *name = NULL
    cdef const char *target = NULL
    cdef Inode *directory = NULL
    cdef Loan loan
    cdef int error = two_texts(arg, n, 0, &name, &target)
    if not error:
        error = check_name(name)
    if not error:
        error = changing(t, h.nodeid, &directory, &loan)
    if error:
        return error
    error = enter_caller(t, 0)
    if not error:
        note_call(t)
        if symlinkat(target, loan.fd, name):
            error = -errno
        step(t, MADE)
        leave_caller(t)
    if error == -EEXIST and was_made_for(t, directory, loan.fd, name, target):
        error = 0
    return _created(t, directory, &loan, name, error)


cdef int do_link(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Give an inode, also a symlink, one more name."""
    cdef const char *name = only_text(arg, n, sizeof(fuse_link_in))
    cdef Inode *linked = NULL
    cdef Inode *directory = NULL
    cdef Loan of_linked, loan
    cdef char path[PATH_ROOM]
    cdef int error = _named(name)
    if not error:
        error = changing(t, (<const fuse_link_in *>arg).oldnodeid, &linked, &of_linked)
    if error:
        return error
    error = changing(t, h.nodeid, &directory, &loan)
    if error:
        give_back(t, &of_linked)
        return error
    path_of(t.volume, of_linked.fd, path)
    # The call follows the link in /proc, and no further.
    note_call(t)
    if linkat(AT_FDCWD, path, loan.fd, name, AT_SYMLINK_FOLLOW):
        error = -errno
    step(t, MADE)
    if error == -EEXIST and was_linked(t, directory, loan.fd, name, of_linked.fd):
        error = 0
    if error == -ENOENT and is_stale_fd(t, linked, of_linked.fd):
        error = -ESTALE
    give_back(t, &of_linked)
    return _reply_named(
        t, directory, &loan, name, IS_NEW if flags_of(linked) & BY_HANDLE else IS_KNOWN, error
    )


cdef int _created(
    Thread *t, Inode *directory, Loan *loan, const char *name, int error
) noexcept nogil:
    """Look the name of a new file up, unless its creation has failed, and reply."""
    return _reply_named(t, directory, loan, name, IS_NEW, error)


cdef int _reply_named(
    Thread *t, Inode *directory, Loan *loan, const char *name, Expected expected, int error
) noexcept nogil:
    """Look a new name up unless an error has prevented it; give the directory back; reply."""
    cdef Entry entry
    if not error:
        error = find_name(t, directory, loan.fd, name, expected, &entry)
    elif error == -ENOENT and is_stale_fd(t, directory, loan.fd):
        error = -ESTALE
    give_back(t, loan)
    return error if error else _reply_entry(t, &entry)


cdef inline void _apply_umask(Thread *t, uint32_t mask) noexcept nogil:
    """Have the host apply the caller's umask to what this thread creates next.

    Without ACLs, the kernel has applied it. With ACLs, a default ACL takes the umask's place.
    """
    if t.volume.options.posix_acl:
        set_umask(t, mask)


cdef inline int _named(const char *name) noexcept nogil:
    return -EIO if name == NULL else check_name(name)


# Taken away


cdef int do_unlink(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Take a name away, unlink(2)."""
    return _remove(t, h.nodeid, only_text(arg, n, 0), 0)


cdef int do_rmdir(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Remove an empty directory, rmdir(2)."""
    return _remove(t, h.nodeid, only_text(arg, n, 0), AT_REMOVEDIR)


cdef int _remove(Thread *t, uint64_t parent, const char *name, int flags) noexcept nogil:
    cdef Inode *directory = NULL
    cdef Loan loan
    cdef int error = _named(name)
    if not error:
        error = changing(t, parent, &directory, &loan)
    if error:
        return error
    if not is_another(t, directory, loan.fd, name):
        error = _remove_name(t, directory, loan.fd, name, flags)
    if error == -ENOENT and is_stale_fd(t, directory, loan.fd):
        error = -ESTALE
    give_back(t, &loan)
    return error


cdef int _remove_name(
    Thread *t, const Inode *directory, int fd, const char *name, int flags
) noexcept nogil:
    cdef Removal removal
    cdef int error
    begin_removal(t, directory, fd, name, &removal)
    error = check_named(t, fd, name)
    if not error:
        note_call(t)
        if unlinkat(fd, name, flags):
            error = -errno
        step(t, MADE)
    end_removal(t, directory, &removal, not error)
    return 0 if error == -ENOENT and was_removed(t, directory, fd) else error

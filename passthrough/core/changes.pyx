"""Changes of mode, owner, size and times, in this order, because each may undo one before it.

A failure leaves the changes before it done. The change time is the host's to set.

**Served again**, each change may be made twice, in the same order. Bits that the dead worker has
taken away as itself leave a mode that is the one asked for: the caller needs no other right then
(`_change_mode`). A size is set twice, also if a process of the host has written meanwhile.

**Sgid bits.** An sgid bit without group execution gives no right, so the owner and the members of
the file's group keep it where suid bits go. Threads lack CAP_FSETID, and without it the host takes
an sgid bit away by itself, if the thread is not in the file's group. In calls that must leave the
bit to the code here, the thread has the capability (`enter_keeping`).
"""

from passthrough.core.abi cimport FATTR_GID, FATTR_MODE, FATTR_SIZE, FATTR_UID
from passthrough.core.attributes cimport reply_stat
from passthrough.core.files cimport open_for_writing
from passthrough.core.identity cimport (
    enter_content, enter_keeping, enter_mode, keeps_sgid, leave_content, leave_keeping, leave_mode,
)
from passthrough.core.idmap cimport new_owner
from passthrough.core.inode_calls cimport may_access, set_mode, set_owner, set_size, set_times
from passthrough.core.inodes cimport Loan, changing, give_back, is_stale
from passthrough.core.layout cimport FILES, Inode, OpenFile, open_get
from passthrough.core.libc cimport (
    EBADF, EINTR, EPERM, ESTALE, S_IFDIR, S_IFMT, S_IFREG, S_ISGID, S_ISVTX, UTIME_OMIT, W_OK,
    errno, fstat, ftruncate, off_t, struct_stat,
)
from passthrough.core.powerless cimport enter_itself, leave_itself
from passthrough.core.state cimport SQUASH_ALL, Ids
from passthrough.core.steps cimport MADE, note_call, step


cdef bint changes_times(const Change *change) noexcept nogil:
    return change.times[0].tv_nsec != UTIME_OMIT or change.times[1].tv_nsec != UTIME_OMIT


cdef int apply_change(Thread *t, void *data) noexcept nogil:
    """Make the changes, and write the reply; return its length, or -errno."""
    cdef const Change *change = <const Change *>data
    cdef struct_stat st
    cdef Inode *inode = NULL
    cdef Loan loan
    cdef int result
    if change.valid & FATTR_SIZE and t.volume.options.seal_size:
        return -EPERM
    result = changing(t, change.nodeid, &inode, &loan)
    if result < 0:
        return result
    result = _apply_to(t, change, inode, loan.fd)
    step(t, MADE)
    if fstat(loan.fd, &st) < 0:
        result = result if result < 0 else -errno
    elif is_stale(t, inode, &st):
        result = -ESTALE  # the change reached a file that no path leads to any more
    give_back(t, &loan)
    return result if result < 0 else reply_stat(t, inode, &st)


cdef int _apply_to(Thread *t, const Change *change, const Inode *inode, int fd) noexcept nogil:
    cdef bint clears = change.clears and not change.valid & FATTR_SIZE
    cdef int result = 0
    if change.valid & FATTR_MODE:
        result = _change_mode(t, change, fd)
    if result == 0 and (clears or change.valid & OWNER):
        result = _change_owner(t, change, fd, clears)
    if result == 0 and change.valid & FATTR_SIZE:
        result = _truncate(t, change, inode, fd)
    if result == 0 and changes_times(change):
        result = set_times(t.volume, fd, change.times)
    return result


cdef int _change_mode(Thread *t, const Change *change, int fd) noexcept nogil:
    """Change the mode; in a restricted volume the host checks suid and sgid bits."""
    cdef uint32_t mode = change.mode
    cdef struct_stat st
    cdef int result
    if not t.powerless and not (mode & PRIVILEGES and t.volume.options.restricted):
        return _set_any_mode(t, fd, mode)
    if fstat(fd, &st) < 0:
        return -errno
    if t.powerless and st.st_mode & S_IFMT == S_IFDIR and t.volume.options.squash == SQUASH_ALL:
        mode |= st.st_mode & S_ISVTX  # stays, because it is not shown
    elif t.powerless and _only_takes_power(t, mode, st.st_mode & PERMISSIONS):
        result = may_take_power(t, change.nodeid, fd, change.valid & FATTR_SIZE != 0)
        if result:
            return result if result < 0 else _chmod_as_itself(t, fd, &st, mode)
    result = enter_mode(t, &st, mode, not change.checked)
    if result < 0:
        return result
    result = set_mode(t.volume, fd, mode)
    leave_mode(t)
    return result


cdef int _set_any_mode(Thread *t, int fd, uint32_t mode) noexcept nogil:
    """Set a mode that the kernel has checked; without CAP_FSETID the host drops the sgid bit."""
    cdef int result
    if not mode & S_ISGID:
        return set_mode(t.volume, fd, mode)
    result = enter_keeping(t, NULL)
    if result == 0:
        result = set_mode(t.volume, fd, mode)
        leave_keeping(t)
    return result


cdef inline bint _only_takes_power(
    const Thread *t, uint32_t mode, uint32_t present
) noexcept nogil:
    """Return whether a mode differs from the present one in missing suid or sgid bits alone."""
    if mode == present:
        return t.again
    return not mode & ~present and not present & ~mode & ~<uint32_t>PRIVILEGES


cdef int _chmod_as_itself(
    Thread *t, int fd, const struct_stat *st, uint32_t mode
) noexcept nogil:
    """Take suid or sgid bits away as the worker.

    Without FUSE_HANDLE_KILLPRIV_V2, the kernel does so before a caller changes the content, which
    takes a right to write and not to chmod(2).
    """
    cdef bint entered = enter_itself(t)
    cdef int result = enter_keeping(t, st)
    if result == 0:
        note_call(t)
        result = set_mode(t.volume, fd, mode)
        leave_keeping(t)
    leave_itself(t, entered)
    return result


cdef int _change_owner(Thread *t, const Change *change, int fd, bint clears) noexcept nogil:
    """Change the owner; chown(2) takes suid bits away, and sgid bits with group execution.

    An sgid bit without group execution stays, also if no id changes, unless it `clears`.
    """
    cdef const uint32_t *uid = &change.uid if change.valid & FATTR_UID else NULL
    cdef const uint32_t *gid = &change.gid if change.valid & FATTR_GID else NULL
    cdef struct_stat st
    cdef Ids new
    cdef int result = new_owner(t.volume, uid, gid, &new)
    if result < 0:
        return result
    if fstat(fd, &st) < 0:
        return -errno
    result = enter_keeping(t, &st)
    if result < 0:
        return result
    result = set_owner(fd, new.uid, new.gid)
    leave_keeping(t)
    if result == 0 and clears and st.st_mode & S_ISGID:
        result = _drop_sgid(t, change, fd)
    return result


cdef int _drop_sgid(Thread *t, const Change *change, int fd) noexcept nogil:
    """Take away what chown(2) leaves, unless the caller may keep it."""
    cdef struct_stat st
    cdef int keeps
    if fstat(fd, &st) < 0:
        return -errno
    if not st.st_mode & S_ISGID:
        return 0
    keeps = keeps_sgid(t, &st, change.checked)
    if keeps:
        return min(keeps, 0)
    return set_mode(t.volume, fd, st.st_mode & PERMISSIONS & ~<uint32_t>S_ISGID)


cdef int _truncate(Thread *t, const Change *change, const Inode *inode, int fd) noexcept nogil:
    """Change the size, and with it suid and sgid bits as the volume and the request say."""
    cdef struct_stat st
    cdef int result
    if fstat(fd, &st) < 0:
        return -errno
    result = enter_content(t, &st, change.clears, change.checked)
    if result < 0:
        return result
    result = _resize(t, change, inode, fd)
    leave_content(t, &st, change.clears, change.nodeid)
    return result


cdef int _resize(Thread *t, const Change *change, const Inode *inode, int fd) noexcept nogil:
    cdef OpenFile *file
    if not change.fh:
        return set_size(t.volume, fd, change.size) if inode.type == S_IFREG else -EBADF
    file = open_get(t.volume.tables, FILES, change.fh)
    if file == NULL:
        return -EBADF
    while ftruncate(file.fd, <off_t>change.size) < 0:
        if errno != EINTR:
            return -errno
    return 0


cdef int may_take_power(Thread *t, uint64_t nodeid, int fd, bint truncates) noexcept nogil:
    """Return whether bits or capabilities may go from a file as before a change of content.

    That is a change through an open file, or one by path, for which the caller needs the right.
    The result may be -errno.
    """
    if open_for_writing(t, nodeid):
        return 1
    return may_access(fd, W_OK) if truncates else 0

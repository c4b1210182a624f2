"""Checks the owners of files: which changes a volume's id maps refuse, and what a mode allows.

With a map or squashing, a caller has no more rights to the host's files than its counterpart on the
host. It may not change a file with an unmapped owner, or make a device node. For an unmapped owner
the kernel gets an id that equals no caller's, and no capability reaches such a file, so that the
kernel refuses writes, removals and most changes. But the kernel lets root chown(2), and may cache
an older owner until the timeout of the cache policy. So each operation that changes a file checks
the owner again, by the descriptor that it acts on.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from passthrough.core.idmap cimport UNMAPPED, acts_as, lacks_user, shown_ids, squashes
from passthrough.core.libc cimport (
    EACCES,
    EINTR,
    EPERM,
    O_ACCMODE,
    O_CLOEXEC,
    O_NOFOLLOW,
    O_PATH,
    O_RDONLY,
    O_TRUNC,
    RESOLVE_NO_XDEV,
    S_IFBLK,
    S_IFCHR,
    S_IFDIR,
    S_IFMT,
    W_OK,
    X_OK,
    close,
    errno,
    fstat,
    open_how,
    openat2,
)
from passthrough.core.state cimport Ids

cdef enum:
    ROOT_ID = 0
    FOR_EXECUTION = 0x20  # what the kernel adds to open(2) for execve(2), __FMODE_EXEC
    EXECUTABLE = 0o111


cdef bint _lacks_owner(const Volume *v, const struct_stat *st) noexcept nogil:
    return v.options.may_lack_owners and lacks_user(v, st.st_uid)


cdef int check_change(const Volume *v, const struct_stat *st) noexcept nogil:
    """Refuse a change of a file with an unmapped owner: -EPERM."""
    return -EPERM if _lacks_owner(v, st) else 0


cdef int check_open(const Volume *v, const struct_stat *st, int flags) noexcept nogil:
    """Refuse to open a file with an unmapped owner, except as its mode lets others read it.

    -EACCES.
    """
    cdef uint32_t wanted = 0o1 if flags & FOR_EXECUTION else 0o4
    if not _lacks_owner(v, st):
        return 0
    if (flags & O_ACCMODE) != O_RDONLY or flags & O_TRUNC or not st.st_mode & wanted:
        return -EACCES
    return 0


cdef int check_named(Thread *t, int dir_fd, const char *name) noexcept nogil:
    """Refuse to move or remove a name if its file has an unmapped owner: -EPERM.

    rename(2) and unlink(2) act on names. No caller can move such a file to the name after the
    check, because the check refuses that move as well.
    """
    cdef open_how how
    cdef struct_stat st
    cdef int fd, result
    if not t.volume.options.may_lack_owners:
        return 0
    memset(&how, 0, sizeof(how))
    how.flags = <uint64_t>(O_PATH | O_NOFOLLOW | O_CLOEXEC)
    how.resolve = RESOLVE_NO_XDEV
    fd = openat2(dir_fd, name, &how)
    while fd < 0 and errno == EINTR:
        fd = openat2(dir_fd, name, &how)
    if fd < 0:  # the caller's system call reports it; a mount point: EBUSY
        return 0
    result = -errno if fstat(fd, &st) < 0 else check_change(t.volume, &st)
    close(fd)
    return result


cdef int check_node(const Volume *v, uint32_t mode) noexcept nogil:
    """Refuse device nodes, the whiteouts of overlayfs included, with a map or squashing: -EPERM."""
    cdef uint32_t kind = mode & S_IFMT
    return -EPERM if v.options.restricted and (kind == S_IFCHR or kind == S_IFBLK) else 0


cdef bint allows(Thread *t, const struct_stat *st, uint32_t mask) noexcept nogil:
    """Return whether a file lets the caller do what access(2) asks for, by its primary group."""
    cdef uint32_t mode = st.st_mode
    cdef Ids shown
    shown_ids(t.volume, st.st_uid, st.st_gid, &shown)
    if shown.uid == UNMAPPED:
        return not mask & W_OK and mask & ~mode & 0o7 == 0
    if t.request.uid == ROOT_ID:
        return not mask & X_OK or (mode & S_IFMT) == S_IFDIR or mode & EXECUTABLE != 0
    if t.request.uid == shown.uid:
        mode >>= 6
    elif t.request.gid == shown.gid:
        mode >>= 3
    return mask & ~mode & 0o7 == 0


cdef int keeps_sgid(Thread *t, const struct_stat *st, bint checked) noexcept nogil:
    """Return whether the caller's change leaves an sgid bit without group execution: 1, 0.

    If the kernel has `checked` the caller, it keeps the bit. The caller's supplementary groups are
    not known here. A squashed caller is in one group alone. -EPERM: the caller has no
    counterpart on the host.
    """
    cdef Ids ids
    cdef int result
    if squashes(t, t.request.uid, t.request.gid):
        result = acts_as(t, &ids)
        return result if result < 0 else ids.gid == st.st_gid
    if checked:
        return True
    shown_ids(t.volume, st.st_uid, st.st_gid, &ids)
    return t.request.uid == ids.uid or t.request.gid == ids.gid

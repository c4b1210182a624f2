"""Names in directories: found and counted, and what their removal leaves.

A file lies on the mount of its directory, unless the lookup crosses a mount point. openat2(2) with
RESOLVE_NO_XDEV finds the file and reports that in one call. So no mount can come unnoticed.

**statx(2) first.** Of a file that the table knows, a descriptor is opened only to be closed again.
One statx(2) in place of openat2(2), fstat(2) and close(2) is enough, if the table has held a
descriptor of the file since before that call. The host cannot have given the number to another file
then. A try that is not enough costs one system call more. A listing has the number of each file,
and a file that was just made is new; for a LOOKUP, each thread tries while half of its last 32
tries were enough, and otherwise with every 16th name.

**Removals.** An inode that is held by handle would lose its number to the next file that is
created, before FORGET comes. So a removal through the volume leaves a descriptor in the inode, a
pin. The journal has the descriptor until then.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from passthrough.core.grants cimport Entry, describe, grant_fd, pin_fd
from passthrough.core.inodes cimport Loan, borrow, borrow_node, give_back
from passthrough.core.libc cimport (
    AT_NO_AUTOMOUNT, AT_STATX_DONT_SYNC, AT_SYMLINK_NOFOLLOW, EINTR, EINVAL, ENOENT, ENOTDIR, EXDEV,
    F_DUPFD_CLOEXEC, O_CLOEXEC, O_NOFOLLOW, O_PATH, RESOLVE_NO_XDEV, S_IFDIR, S_IFMT,
    STATX_BASIC_STATS, STATX_MNT_ID, close, errno, fcntl, fstat, makedev, open_how, openat2, statx,
    struct_stat, struct_statx,
)
from passthrough.core.journal cimport note_removal
from passthrough.core.rare cimport open_across
from passthrough.core.reach cimport check_beneath, open_parent
from passthrough.core.state cimport Thread, Volume
from passthrough.core.tables cimport (
    KNOWN, NO_PLACE, ROOT_INDEX, Found, Inode, Tables, created, descriptor, grant,
    mount_of, some_by_handle,
)

cdef extern from * nogil:
    int ones "__builtin_popcount"(unsigned int bits)


cdef int check_name(const char *name) noexcept nogil:
    """Refuse what would lead out of its directory, or name the directory itself: -EINVAL."""
    cdef const char *at = name
    if not name[0] or (name[0] == b'.' and (not name[1] or (name[1] == b'.' and not name[2]))):
        return -EINVAL
    while at[0]:
        if at[0] == b'/':
            return -EINVAL
        at += 1
    return 0


cdef int open_same_mount(int dir_fd, const char *name) noexcept nogil:
    """Open a name with O_PATH, a symlink itself; -EXDEV: something is mounted on it."""
    cdef open_how how
    cdef int fd = -EINTR
    memset(&how, 0, sizeof(how))
    how.flags = <unsigned int>(O_PATH | O_NOFOLLOW | O_CLOEXEC)
    how.resolve = RESOLVE_NO_XDEV
    while fd == -EINTR:
        fd = openat2(dir_fd, name, &how)
        if fd < 0:
            fd = -errno
    return fd


cdef int find_name(
    Thread *t, const Inode *directory, int dir_fd, const char *name, Expected expected,
    Entry *entry
) noexcept nogil:
    """Find a name in a directory that is not hidden, by a descriptor of it; count one lookup.

    A symlink is found itself, never its target. -ELOOP: a mount of passfs. -EXDEV: a file that is
    mounted where the volume shows no mounts. `expected` changes the number of system calls alone.
    """
    cdef int result
    if t.volume.options.statx_first and (
        expected == IS_KNOWN or (expected == UNSURE and _is_promising(t))
    ):
        result = _find_known(t, directory, dir_fd, name, entry)
        if expected == UNSURE and result != -ENOENT:
            t.hits = t.hits << 1 | (result == 0)
        if result != UNDECIDED:
            return result
    result = open_same_mount(dir_fd, name)
    if result == -EXDEV:
        return _find_mounted(t, dir_fd, name, entry)
    if result < 0:
        return result
    return grant_fd(t, result, directory.place, entry)


cdef bint _is_promising(Thread *t) noexcept nogil:
    """Return whether to begin with statx(2)."""
    t.lookups += 1
    return ones(t.hits) >= 16 or t.lookups % 16 == 0


cdef int _find_known(
    Thread *t, const Inode *directory, int dir_fd, const char *name, Entry *entry
) noexcept nogil:
    """Find a name by statx(2), if the table knows the file.

    Any error but ENOENT is left to openat2(2): it may be one of a file system mounted there.
    """
    cdef Tables *tables = t.volume.tables
    cdef struct_statx found
    cdef uint32_t since = created(tables)
    if statx(
        dir_fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC,
        STATX_BASIC_STATS | STATX_MNT_ID, &found,
    ) < 0:
        return -ENOENT if errno == ENOENT else UNDECIDED
    return grant_known(t, directory, &found, since, entry)


cdef int grant_known(
    Thread *t, const Inode *directory, const struct_statx *found, uint32_t since, Entry *entry
) noexcept nogil:
    """Count one lookup of a file that statx(2) has found, if a descriptor held it at `since`."""
    cdef Tables *tables = t.volume.tables
    cdef uint32_t needed = STATX_BASIC_STATS | STATX_MNT_ID
    cdef Found file
    if found.stx_mask & needed != needed:
        return UNDECIDED
    if found.stx_mnt_id != tables.mounts[mount_of(tables, directory)].id:
        return UNDECIDED
    _fill_stat(found, &entry.st)
    describe(&file, &entry.st, directory.place, -1)
    file.since = since
    file.dated = True
    entry.submount = False
    return 0 if grant(tables, t.journal, &file, &entry.granted) == KNOWN else UNDECIDED


cdef void _fill_stat(const struct_statx *found, struct_stat *st) noexcept nogil:
    """Write the attributes as fstat(2) would."""
    memset(st, 0, sizeof(struct_stat))
    st.st_dev = makedev(found.stx_dev_major, found.stx_dev_minor)
    st.st_ino = found.stx_ino
    st.st_mode = found.stx_mode
    st.st_nlink = found.stx_nlink
    st.st_uid = found.stx_uid
    st.st_gid = found.stx_gid
    st.st_rdev = makedev(found.stx_rdev_major, found.stx_rdev_minor)
    st.st_size = <long>found.stx_size
    st.st_blksize = found.stx_blksize
    st.st_blocks = <long>found.stx_blocks
    st.st_atim.tv_sec = found.stx_atime.tv_sec
    st.st_atim.tv_nsec = found.stx_atime.tv_nsec
    st.st_mtim.tv_sec = found.stx_mtime.tv_sec
    st.st_mtim.tv_nsec = found.stx_mtime.tv_nsec
    st.st_ctim.tv_sec = found.stx_ctime.tv_sec
    st.st_ctim.tv_nsec = found.stx_ctime.tv_nsec


cdef int _find_mounted(Thread *t, int dir_fd, const char *name, Entry *entry) noexcept nogil:
    """Find a name that something is mounted on; the mount may be gone by now.

    -EXDEV: it is a file, which a volume without submounts cannot show as empty.
    """
    cdef bint hides = t.volume.options.hide_submounts
    cdef struct_stat st
    cdef int result
    cdef int fd = open_across(t, dir_fd, name)
    if fd < 0:
        return fd
    if hides and (fstat(fd, &st) < 0 or st.st_mode & S_IFMT != S_IFDIR):
        close(fd)
        return -EXDEV
    result = grant_fd(t, fd, NO_PLACE, entry)
    entry.submount = not hides
    return result


cdef uint64_t mounted_number(
    Thread *t, const Inode *directory, int dir_fd, const char *name, uint32_t type,
    uint64_t beneath, uint64_t *counted
) noexcept nogil:
    """Return the number that a lookup of a listed name shows: `beneath`, if nothing is mounted.

    If one lookup was counted for that, `counted` becomes the nodeid. The caller gives it back as
    FORGET does: since then the kernel may have given back all that it had.

    Only for a local file system, where statx(2) is quick. It is asked about directories (type 0:
    unknown), and about all once a mount below the source has been entered.
    """
    cdef Tables *tables = t.volume.tables
    cdef struct_statx found
    cdef Entry entry
    if type and type != S_IFDIR and tables.header.mounts == 1:
        return beneath
    if statx(
        dir_fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, STATX_MNT_ID,
        &found,
    ) < 0 or found.stx_mnt_id == tables.mounts[mount_of(tables, directory)].id:
        return beneath
    if find_name(t, directory, dir_fd, name, IS_NEW, &entry) < 0:
        return beneath
    counted[0] = entry.granted.nodeid
    return entry.granted.shown_ino


cdef int find_dot(Thread *t, const Inode *directory, bint parent, Entry *entry) noexcept nogil:
    """Find `.` in a directory or, with `parent`, `..`; count one lookup.

    `..` of the root is the root, and leads nowhere above it. -ESTALE: another process has moved the
    directory out of the source.
    """
    cdef Volume *v = t.volume
    cdef Loan loan
    cdef int fd
    cdef int error = borrow(t, directory, &loan)
    if error:
        return error
    if not parent or directory.nodeid == ROOT_INDEX:
        fd = fcntl(loan.fd, F_DUPFD_CLOEXEC, 0)
        if fd < 0:
            fd = -errno
    elif directory.type != S_IFDIR:
        fd = -ENOTDIR
    else:
        fd = open_parent(v, descriptor(&v.tables.inodes[ROOT_INDEX]), loan.fd)
    give_back(t, &loan)
    if fd < 0:
        return fd
    return grant_fd(t, fd, NO_PLACE, entry)


cdef int check_reachable(Thread *t, uint64_t nodeid) noexcept nogil:
    """Refuse an inode that the calling thread could not reach by name: -EACCES, -ESTALE."""
    cdef Volume *v = t.volume
    cdef Inode *inode
    cdef Loan loan
    cdef int error
    if nodeid == ROOT_INDEX:
        return 0
    error = borrow_node(t, nodeid, &inode, &loan)
    if error:
        return error
    error = check_beneath(v, descriptor(&v.tables.inodes[ROOT_INDEX]), loan.fd)
    give_back(t, &loan)
    return error


# Removed


cdef void begin_removal(
    Thread *t, const Inode *directory, int dir_fd, const char *name, Removal *removal
) noexcept nogil:
    """Hold the file of a name that is about to be removed, if it may be held by handle.

    The removal reports any error, or that something is mounted there.
    """
    removal.fd = open_same_mount(dir_fd, name) if some_by_handle(t.volume.tables) else -1
    if removal.fd >= 0:
        note_removal(t.journal, removal.fd, directory.place)


cdef void end_removal(
    Thread *t, const Inode *directory, Removal *removal, bint removed
) noexcept nogil:
    """Have the file keep its number until it is forgotten, if the name is removed now."""
    cdef bint pinned
    if removal.fd < 0:
        return
    pinned = removed and pin_fd(t.volume.tables, removal.fd, directory.place)
    note_removal(t.journal, 0, 0)
    if not pinned:
        close(removal.fd)
    removal.fd = -1

"""Attributes of inodes: in replies, and asked for by GETATTR, STATX, STATFS, ACCESS, SYNCFS.

A reply has the host's attributes, with three exceptions. `st_ino` is the number that the table
shows, the owner is the one that the id maps show, and a directory has no sticky bit with squash=all
(`_shown_mode`). Attributes are of the host as it is now. They stay known for the timeouts of the
cache policy, which differ for directories and other files.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from passthrough.core.abi cimport (
    FUSE_ATTR_SUBMOUNT,
    fuse_access_in,
    fuse_attr,
    fuse_attr_out,
    fuse_statfs_out,
    fuse_statx_out,
    fuse_sx_time,
)
from passthrough.core.identity cimport allows
from passthrough.core.idmap cimport shown_ids
from passthrough.core.inode_calls cimport may_access
from passthrough.core.inodes cimport Loan, borrow_node, give_back, stat_inode
from passthrough.core.layout cimport inode_of
from passthrough.core.libc cimport (
    AT_EMPTY_PATH, EACCES, EINTR, ESTALE, O_DIRECTORY, O_RDONLY, S_IFDIR, S_IFMT, S_IFREG, S_ISVTX,
    STATX_BASIC_STATS, STATX_BTIME, X_OK, close, errno, fstat, fstatfs, statx, statx_timestamp,
    struct_statfs, struct_statx, syncfs,
)
from passthrough.core.opening cimport reopen
from passthrough.core.squash cimport may_execute
from passthrough.core.state cimport SQUASH_ALL, Ids, about_to_block
from passthrough.core.timeouts cimport (
    DIR_ATTR, DIR_ENTRY, FILE_ATTR, FILE_ENTRY, NEGATIVE, Timeout, timeout_of,
)


# In replies


cdef inline bint _is_directory(uint32_t mode) noexcept nogil:
    return mode & S_IFMT == S_IFDIR


cdef inline uint32_t _shown_mode(const Thread *t, uint32_t mode) noexcept nogil:
    """Return the mode, without the sticky bit of a directory if all callers act as one user.

    The kernel would apply the bit by the callers' own ids, and refuse callers what that one user
    may do, may_delete() and may_create_in_sticky() in fs/namei.c.
    """
    if t.volume.options.squash == SQUASH_ALL and _is_directory(mode):
        return mode & ~<uint32_t>S_ISVTX
    return mode


cdef void _fill_attr(
    const Thread *t, const struct_stat *st, uint64_t shown_ino, fuse_attr *out
) noexcept nogil:
    """Write the attributes of a file; `flags` become 0."""
    cdef Ids owner
    shown_ids(t.volume, st.st_uid, st.st_gid, &owner)
    out.ino = shown_ino
    out.size = <uint64_t>st.st_size
    out.blocks = <uint64_t>st.st_blocks
    out.atime = <uint64_t>st.st_atim.tv_sec
    out.mtime = <uint64_t>st.st_mtim.tv_sec
    out.ctime = <uint64_t>st.st_ctim.tv_sec
    out.atimensec = <uint32_t>st.st_atim.tv_nsec
    out.mtimensec = <uint32_t>st.st_mtim.tv_nsec
    out.ctimensec = <uint32_t>st.st_ctim.tv_nsec
    out.mode = _shown_mode(t, st.st_mode)
    out.nlink = <uint32_t>st.st_nlink
    out.uid = owner.uid
    out.gid = owner.gid
    out.rdev = <uint32_t>st.st_rdev  # of 32 bits or fewer: new_encode_dev(), linux/kdev_t.h
    out.blksize = <uint32_t>st.st_blksize
    out.flags = 0


cdef inline Timeout _attr_timeout(const Thread *t, uint32_t mode) noexcept nogil:
    return timeout_of(&t.volume.timeouts, DIR_ATTR if _is_directory(mode) else FILE_ATTR)


cdef inline Timeout _entry_timeout(const Thread *t, uint32_t mode) noexcept nogil:
    return timeout_of(&t.volume.timeouts, DIR_ENTRY if _is_directory(mode) else FILE_ENTRY)


cdef void fill_entry(const Thread *t, const Entry *entry, fuse_entry_out *out) noexcept nogil:
    """Write the entry of a file.

    The generation is 0: a nodeid is never given out twice, so that it needs none.
    """
    cdef Timeout known = _entry_timeout(t, entry.st.st_mode)
    out.nodeid = entry.granted.nodeid
    out.generation = 0
    out.entry_valid = known.seconds
    out.entry_valid_nsec = known.nanoseconds
    known = _attr_timeout(t, entry.st.st_mode)
    out.attr_valid = known.seconds
    out.attr_valid_nsec = known.nanoseconds
    _fill_attr(t, &entry.st, entry.granted.shown_ino, &out.attr)
    if entry.submount:
        out.attr.flags = FUSE_ATTR_SUBMOUNT


cdef bint fill_absent(const Thread *t, fuse_entry_out *out) noexcept nogil:
    """Write a negative entry: there is no such name, for as long as the timeout says.

    Return whether there is a timeout.
    """
    cdef Timeout known = timeout_of(&t.volume.timeouts, NEGATIVE)
    memset(out, 0, sizeof(fuse_entry_out))
    out.entry_valid = known.seconds
    out.entry_valid_nsec = known.nanoseconds
    return known.seconds or known.nanoseconds


cdef int reply_stat(Thread *t, const Inode *inode, const struct_stat *st) noexcept nogil:
    """Write the answer of GETATTR and SETATTR; return its length."""
    cdef fuse_attr_out *out = <fuse_attr_out *>t.out
    cdef Timeout known = _attr_timeout(t, st.st_mode)
    out.attr_valid = known.seconds
    out.attr_valid_nsec = known.nanoseconds
    out.dummy = 0
    _fill_attr(t, st, inode.shown_ino, &out.attr)
    return sizeof(fuse_attr_out)


cdef int _reply_attr(Thread *t, const Inode *inode) noexcept nogil:
    """Write the answer of GETATTR with the attributes of now; return its length, or -errno."""
    cdef struct_stat st
    cdef int result = stat_inode(t, inode, &st)
    if result < 0:
        return result
    return reply_stat(t, inode, &st)


# Asked for


cdef int do_getattr(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Answer the attributes of an inode, whether or not the kernel names an open file."""
    cdef const Inode *inode = inode_of(t.volume.tables, h.nodeid)
    if inode == NULL:
        return -ESTALE
    return _reply_attr(t, inode)


cdef int do_statx(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Answer the attributes of an inode, and its time of birth, statx(2)."""
    cdef struct_statx found
    cdef Inode *inode = NULL
    cdef Loan loan
    cdef int result = borrow_node(t, h.nodeid, &inode, &loan)
    if result < 0:
        return result
    if statx(loan.fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &found) < 0:
        result = -errno
    give_back(t, &loan)
    return result if result < 0 else _reply_statx(t, inode, &found)


cdef int _reply_statx(Thread *t, const Inode *inode, const struct_statx *found) noexcept nogil:
    """Write the answer of STATX; the kernel takes no more of it than this."""
    cdef fuse_statx_out *out = <fuse_statx_out *>t.out
    cdef Timeout known = _attr_timeout(t, found.stx_mode)
    cdef Ids owner
    memset(out, 0, sizeof(fuse_statx_out))
    out.attr_valid = known.seconds
    out.attr_valid_nsec = known.nanoseconds
    shown_ids(t.volume, found.stx_uid, found.stx_gid, &owner)
    out.stat.mask = STATX_BASIC_STATS
    if found.stx_mask & STATX_BTIME:
        out.stat.mask |= STATX_BTIME
        _fill_time(&out.stat.btime, &found.stx_btime)
    out.stat.blksize = found.stx_blksize
    out.stat.nlink = found.stx_nlink
    out.stat.uid = owner.uid
    out.stat.gid = owner.gid
    out.stat.mode = <unsigned short>_shown_mode(t, found.stx_mode)
    out.stat.ino = inode.shown_ino
    out.stat.size = found.stx_size
    out.stat.blocks = found.stx_blocks
    _fill_time(&out.stat.atime, &found.stx_atime)
    _fill_time(&out.stat.ctime, &found.stx_ctime)
    _fill_time(&out.stat.mtime, &found.stx_mtime)
    out.stat.rdev_major = found.stx_rdev_major
    out.stat.rdev_minor = found.stx_rdev_minor
    out.stat.dev_major = found.stx_dev_major
    out.stat.dev_minor = found.stx_dev_minor
    return sizeof(fuse_statx_out)


cdef inline void _fill_time(fuse_sx_time *out, const statx_timestamp *time) noexcept nogil:
    out.tv_sec = time.tv_sec
    out.tv_nsec = time.tv_nsec


cdef int do_statfs(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Answer what statfs(2) says of the host's file system that an inode lies on."""
    cdef fuse_statfs_out *out = <fuse_statfs_out *>t.out
    cdef struct_statfs st
    cdef Inode *inode = NULL
    cdef Loan loan
    cdef int result = borrow_node(t, h.nodeid, &inode, &loan)
    if result < 0:
        return result
    while fstatfs(loan.fd, &st) < 0:
        result = -errno
        if result != -EINTR:
            break
        result = 0
    give_back(t, &loan)
    if result < 0:
        return result
    memset(out, 0, sizeof(fuse_statfs_out))
    out.st.blocks = st.f_blocks
    out.st.bfree = st.f_bfree
    out.st.bavail = st.f_bavail
    out.st.files = st.f_files
    out.st.ffree = st.f_ffree
    out.st.bsize = <uint32_t>st.f_bsize
    out.st.namelen = <uint32_t>st.f_namelen
    out.st.frsize = <uint32_t>(st.f_frsize if st.f_frsize else st.f_bsize)
    return sizeof(fuse_statfs_out)


cdef int do_access(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Answer whether the caller may do what it asks about, access(2).

    Without squashing the mode decides, and the caller's primary group: supplementary groups are
    unknown here. Kernels that check permissions themselves never ask.
    """
    cdef int mask = <int>(<const fuse_access_in *>arg).mask
    cdef struct_stat st
    cdef Inode *inode = NULL
    cdef Loan loan
    cdef int result = borrow_node(t, h.nodeid, &inode, &loan)
    if result < 0:
        return result
    if t.powerless:
        result = _host_allows(t, inode, loan.fd, mask)
    elif fstat(loan.fd, &st) < 0:
        result = -errno
    else:
        result = allows(t, &st, <uint32_t>mask)
    give_back(t, &loan)
    if result > 0:
        return 0
    return result if result < 0 else -EACCES


cdef int _host_allows(Thread *t, const Inode *inode, int fd, int mask) noexcept nogil:
    """Return whether the host lets the thread's ids do `mask`, or -errno."""
    cdef int result
    if inode.type == S_IFREG and mask & X_OK:
        result = may_execute(t, fd)
        if result <= 0:
            return result
        mask &= ~X_OK
    return may_access(fd, mask)


cdef int do_syncfs(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Bring the host's file system that a directory lies on to stable storage, syncfs(2)."""
    cdef const Inode *inode
    cdef int fd
    cdef int result = 0
    about_to_block(t)
    inode = inode_of(t.volume.tables, h.nodeid)
    if inode == NULL:
        return -ESTALE
    fd = reopen(t, inode, S_IFDIR, O_RDONLY | O_DIRECTORY)
    if fd < 0:
        return fd
    if syncfs(fd) < 0:
        result = -errno
    if close(fd) < 0:
        result = -errno
    return result

"""SETATTR: which attributes change, and whether suid and sgid bits go with that.

The kernel says with a change of size or owner that the bits go. Without FUSE_HANDLE_KILLPRIV_V2 it
sends the new mode along, but lets an sgid bit without group execution stay.

A SETATTR that asks for nothing has two reasons. Linux sends it before a write or another change of
content by a caller that may not keep the bits, also one that passes through (file_remove_privs(),
fs/inode.c). Then the bits go, and the reply tells the kernel the new mode. Linux sends the same,
unchecked, for chown(2) without an owner: there only the owner and root take bits away.

In a volume that squashes ids, the changes are made as the caller, so the host decides. With an fh,
and for a SETATTR that asks for nothing of an open file, no right is needed: the right was checked
at the open. The kernel sends an fh for ftruncate(2), and when it writes back the times of an open
file as user 0.
"""

from libc.stdint cimport int64_t, uint64_t

from passthrough.core.abi cimport (
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_CTIME,
    FATTR_FH,
    FATTR_GID,
    FATTR_KILL_SUIDGID,
    FATTR_LOCKOWNER,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
    FUSE_HANDLE_KILLPRIV_V2,
    fuse_setattr_in,
)
from passthrough.core.backing cimport note_privileges
from passthrough.core.changes cimport (
    OWNER, PERMISSIONS, PRIVILEGES, Change, apply_change, changes_times,
)
from passthrough.core.files cimport open_for_writing
from passthrough.core.idmap cimport NO_ID, new_group, shown_ids
from passthrough.core.inodes cimport stat_inode
from passthrough.core.layout cimport Inode, inode_of
from passthrough.core.libc cimport (
    CLOCK_REALTIME, EACCES, EINVAL, EPERM, ESTALE, S_IFDIR, UTIME_NOW, UTIME_OMIT,
    clock_gettime, struct_stat, timespec,
)
from passthrough.core.squash cimport TRY_AS_MEMBER, TRY_EITHER, as_caller, mode_tries
from passthrough.core.state cimport SQUASH_NONE, Ids, uses

cdef enum:
    # These come with a change, and are none to be made here.
    NO_CHANGE = FATTR_CTIME | FATTR_FH | FATTR_LOCKOWNER
    NS_PER_S = 1000000000
    ROOT_USER = 0
    RECENT_S = 2  # longer than a request takes, and than the second's fraction that is left out


# The request


cdef int do_setattr(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Change attributes, and answer all of them."""
    cdef const fuse_setattr_in *s = <const fuse_setattr_in *>arg
    cdef Change change
    cdef int result = _read(t, s, &change)
    if result < 0:
        return result
    if not s.valid & ~<uint32_t>NO_CHANGE:
        change.fh = 0
        result = _clear_before_write(t, &change)
        return result if result < 0 else _change(t, &change)
    result = _change(t, &change)
    if result >= 0 and s.valid & FATTR_MODE and s.mode & PRIVILEGES:
        note_privileges(t, h.nodeid)
    return result


cdef int _read(Thread *t, const fuse_setattr_in *s, Change *change) noexcept nogil:
    """Take the request apart; -EINVAL: a number that means something else to the host."""
    cdef int result
    if s.valid & FATTR_UID and s.uid == NO_ID:
        return -EINVAL
    if s.valid & FATTR_GID and s.gid == NO_ID:
        return -EINVAL
    change.nodeid = t.request.nodeid
    change.fh = s.fh if s.valid & FATTR_FH else 0
    change.valid = s.valid & (FATTR_MODE | OWNER | FATTR_SIZE)
    change.mode = s.mode & PERMISSIONS
    change.uid = s.uid
    change.gid = s.gid
    change.size = s.size
    result = _read_time(
        &change.times[0], s.valid & FATTR_ATIME, s.valid & FATTR_ATIME_NOW, s.atime, s.atimensec
    )
    if result == 0:
        result = _read_time(
            &change.times[1], s.valid & FATTR_MTIME, s.valid & FATTR_MTIME_NOW, s.mtime,
            s.mtimensec,
        )
    if uses(t, FUSE_HANDLE_KILLPRIV_V2):
        change.clears = s.valid & FATTR_KILL_SUIDGID != 0
    else:
        change.clears = s.valid & FATTR_SIZE and t.request.uid != ROOT_USER
    change.checked = not s.valid & (FATTR_SIZE | FATTR_MODE)
    return result


cdef int _read_time(
    timespec *out, uint32_t given, uint32_t now, uint64_t seconds, uint32_t nanoseconds
) noexcept nogil:
    out.tv_sec = 0
    if now:
        out.tv_nsec = UTIME_NOW
    elif not given:
        out.tv_nsec = UTIME_OMIT
    elif nanoseconds >= NS_PER_S:  # to utimensat(2), some of these numbers mean other things
        return -EINVAL
    else:
        out.tv_sec = <int64_t>seconds
        out.tv_nsec = nanoseconds
    return 0


cdef int _clear_before_write(Thread *t, Change *change) noexcept nogil:
    """Find out if suid and sgid bits go by a SETATTR that asks for nothing."""
    cdef const Inode *inode
    cdef struct_stat st
    cdef Ids owner
    cdef int result
    change.checked = not open_for_writing(t, change.nodeid)
    change.clears = True
    if not change.checked:
        return 0
    inode = inode_of(t.volume.tables, change.nodeid)
    if inode == NULL:
        return -ESTALE
    result = stat_inode(t, inode, &st)
    if result < 0:
        return result
    shown_ids(t.volume, st.st_uid, st.st_gid, &owner)
    change.clears = t.request.uid == ROOT_USER or t.request.uid == owner.uid
    return 0


cdef inline int _change(Thread *t, Change *change) noexcept nogil:
    if t.volume.options.squash == SQUASH_NONE:
        return apply_change(t, change)
    return _change_squashed(t, change)


# Squashed volumes


cdef int _change_squashed(Thread *t, Change *change) noexcept nogil:
    """Change attributes as the caller, unless none of the changes needs a right."""
    cdef const Inode *inode = inode_of(t.volume.tables, change.nodeid)
    cdef unsigned long long nodeid = change.nodeid
    cdef uint32_t more[2]
    cdef struct_stat st
    cdef bint clears_alone
    cdef int tries, result
    cdef int count = 0
    if inode == NULL:
        return -ESTALE
    # chown(2) without an owner; the same comes before a write.
    clears_alone = not change.valid and not changes_times(change)
    clears_alone = clears_alone and not open_for_writing(t, nodeid)
    change.clears = change.clears or clears_alone
    if change.valid & FATTR_GID:
        count = new_group(t.volume, &change.gid, more)
    tries = mode_tries(
        change.valid & FATTR_MODE != 0, change.mode, inode.type == S_IFDIR
    )
    if tries == TRY_AS_MEMBER:
        result = stat_inode(t, inode, &st)
        if result < 0:
            return result
        more[count] = st.st_gid
        count += 1
    if _needs_no_right(change) and not clears_alone:
        return apply_change(t, change)
    result = as_caller(t, apply_change, change, &nodeid, 1, more, count, tries)
    if (result != -EPERM and result != -EACCES) or not _touches(t, change):
        return result
    change.times[0].tv_sec = change.times[1].tv_sec = 0
    change.times[0].tv_nsec = change.times[1].tv_nsec = UTIME_NOW
    change.clears = False
    change.checked = True
    return as_caller(t, apply_change, change, &nodeid, 1, NULL, 0, TRY_EITHER)


cdef bint _needs_no_right(const Change *change) noexcept nogil:
    """Return whether the changes need no right, or only the one that the fh was opened with."""
    if change.valid & (FATTR_MODE | OWNER):
        return False
    return change.fh or (not change.valid & FATTR_SIZE and not changes_times(change))


cdef bint _touches(const Thread *t, const Change *change) noexcept nogil:
    """Return whether the changes may be those of utimensat(2) without a time, by libfuse.

    The right to write is enough for such a request. libfuse's binding fills the time of the moment
    in, and does not say so.
    """
    cdef const timespec *times = &change.times[0]
    cdef timespec now
    cdef double past
    if not t.volume.options.libfuse or change.valid:
        return False
    if times[0].tv_sec != times[1].tv_sec or times[0].tv_nsec != times[1].tv_nsec:
        return False
    clock_gettime(CLOCK_REALTIME, &now)
    past = <double>now.tv_sec + <double>now.tv_nsec / NS_PER_S - <double>times[0].tv_sec
    return -RECENT_S < past < RECENT_S

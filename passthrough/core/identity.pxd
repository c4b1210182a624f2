"""Acts as the caller; each enter_X is followed by its leave_X if it returned 0.

Guards are not nested, but for those of powerless.pyx around one of these. Functions on ids
are those of idmap.pyx, checks those of owners.pyx.
"""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.idmap cimport (
    NO_FILES_ID,
    NO_ID,
    UNMAPPED,
    lacks_group,
    lacks_user,
    may_have_group,
    new_owner,
    shown_ids,
    to_host,
)
from passthrough.core.libc cimport struct_stat
from passthrough.core.owners cimport (
    allows,
    check_change,
    check_named,
    check_node,
    check_open,
    keeps_sgid,
)
from passthrough.core.state cimport Ids, Thread, Volume


cdef int identity_thread(Thread *t) noexcept nogil

cdef int enter_caller(Thread *t, uint32_t mode) noexcept nogil
cdef void leave_caller(Thread *t) noexcept nogil
cdef int enter_content(Thread *t, const struct_stat *st, bint clears, bint checked) noexcept nogil
cdef void leave_content(
    Thread *t, const struct_stat *st, bint clears, uint64_t nodeid
) noexcept nogil
cdef int enter_clearing(Thread *t, uint32_t gid) noexcept nogil
cdef void leave_clearing(Thread *t) noexcept nogil
cdef bint enter_unreserved(Thread *t, bint needed) noexcept nogil
cdef void leave_unreserved(Thread *t, bint entered) noexcept nogil
cdef bint is_host_root(Thread *t) noexcept nogil
cdef int enter_mode(Thread *t, const struct_stat *st, uint32_t mode, bint known) noexcept nogil
cdef void leave_mode(Thread *t) noexcept nogil
# Around a call by which the worker itself may keep sgid bits: chown(2), an ACL that is set without
# FUSE_SETXATTR_ACL_KILL_SGID, FS_IOC_FSSETXATTR (XFS). `st` says if there is one; NULL: it may be.
cdef int enter_keeping(Thread *t, const struct_stat *st) noexcept nogil
cdef void leave_keeping(Thread *t) noexcept nogil
cdef void set_umask(Thread *t, uint32_t mask) noexcept nogil


cdef inline bint is_itself(const Thread *t) noexcept nogil:
    """Return whether the thread is outside of all guards, as between two requests."""
    return not (t.powerless or t.reduced or t.fs.uid or t.fs.gid)

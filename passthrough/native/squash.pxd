"""Acts as the caller of a volume that squashes ids, without capabilities: the host decides."""

from libc.stdint cimport uint32_t

from passthrough.native.abi cimport fuse_in_header
from passthrough.native.state cimport Handler, Ids, Thread


# How a handler acts where ids are squashed.
cdef enum Acts:
    ACTS_AS_WORKER = 0  # or as the opener of a file, whose right was checked then
    ACTS_AS_CALLER = 1  # on the request's inode
    ACTS_ON_TWO = 2  # LINK: on the inode of the fixed part, too
    ACTS_NO_INODE = 3  # IOCTL: no inode has to be reachable
    ACTS_BY_ITSELF = 4  # RENAME, SETATTR: their handlers call `as_caller`
    ACTS_NEVER = 5


ctypedef int (*Operation)(Thread *t, void *data) noexcept nogil

cdef enum Tries:
    TRY_ALONE = 1
    TRY_AS_MEMBER = 2
    TRY_EITHER = 3

cdef int serve_squashed(
    Thread *t, Handler handler, int acts, const fuse_in_header *h, const char *arg, uint32_t length
) noexcept nogil
cdef int as_caller(
    Thread *t, Operation operation, void *data, const unsigned long long *nodeids, int count,
    const uint32_t *more, int more_count, int tries
) noexcept nogil
cdef int acts_as(Thread *t, Ids *out) noexcept nogil
cdef bint squashes(const Thread *t, uint32_t uid, uint32_t gid) noexcept nogil
cdef int enter_powerless(
    Thread *t, const Ids *ids, const uint32_t *groups, int count
) noexcept nogil
cdef void leave_powerless(Thread *t) noexcept nogil
cdef bint enter_itself(Thread *t) noexcept nogil
cdef void leave_itself(Thread *t, bint entered) noexcept nogil
cdef int may_execute(Thread *t, int fd) noexcept nogil

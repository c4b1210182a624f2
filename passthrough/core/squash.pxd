"""Acts as the caller of a volume that squashes ids, without capabilities: the host decides.

`serve_squashed` runs a handler as its row of the loop's table says. A handler of ACTS_BY_ITSELF
runs as the worker. It does what needs no right, and calls `as_caller` for the rest:

    cdef int change(Thread *t, void *data) noexcept nogil  # as the caller; may run twice
    result = as_caller(t, change, &data, nodeids, 1, more, new_group(v, &gid, more), tries)

`nodeids` are the inodes that the operation acts on: a squashed caller must be able to reach them,
and their groups may give other callers a right. `more` has further such groups, of the host.
`tries` is TRY_EITHER, or what `mode_tries` says. Inside of `as_caller` another call is the plain
operation.

Inside, `t.powerless` is true, `t.acting` has the ids and `t.squashed` says if the caller is
squashed. enter_itself ... leave_itself is for what the worker does by its own right.
"""

from libc.stdint cimport uint32_t

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.idmap cimport acts_as, new_group, squashes
from passthrough.core.libc cimport struct_stat
from passthrough.core.powerless cimport (
    enter_itself,
    enter_powerless,
    leave_itself,
    leave_powerless,
)
from passthrough.core.state cimport Handler, Thread


# How a handler acts where ids are squashed.
cdef enum Acts:
    ACTS_AS_WORKER = 0  # or as the opener of a file: the right was checked then
    ACTS_AS_CALLER = 1  # on the request's inode
    ACTS_ON_TWO = 2  # LINK: on the inode of the fixed part, too
    ACTS_BY_ITSELF = 3  # RENAME, SETATTR, IOCTL: their handlers call `as_caller`
    ACTS_NEVER = 4


ctypedef int (*Operation)(Thread *t, void *data) noexcept nogil

# Whether a caller that squashing leaves alone counts as a member of the groups concerned.
cdef enum Tries:
    TRY_ALONE = 1
    TRY_AS_MEMBER = 2
    TRY_EITHER = 3  # as a member after the host has refused

cdef int serve_squashed(
    Thread *t, Handler handler, int acts, const fuse_in_header *h, const char *arg, uint32_t length
) noexcept nogil
cdef int as_caller(
    Thread *t, Operation operation, void *data, const unsigned long long *nodeids, int count,
    const uint32_t *more, int more_count, int tries
) noexcept nogil
cdef int mode_tries(bint given, uint32_t mode, bint directory) noexcept nogil
cdef uint32_t without_sgid(Thread *t, const struct_stat *parent, uint32_t mode) noexcept nogil
cdef int may_execute(Thread *t, int fd) noexcept nogil  # 1, 0, -errno

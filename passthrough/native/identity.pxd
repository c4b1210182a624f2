"""Acts as the caller, and maps ids; each enter_X is followed by its leave_X if it returned 0."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.native.libc cimport struct_stat
from passthrough.native.state cimport Ids, Thread, Volume


cdef int identity_thread(Thread *t) noexcept nogil
cdef int to_host(Volume *v, uint32_t uid, uint32_t gid, Ids *out) noexcept nogil
cdef int new_owner(Volume *v, const uint32_t *uid, const uint32_t *gid, Ids *out) noexcept nogil
cdef void shown_ids(const Volume *v, uint32_t uid, uint32_t gid, Ids *out) noexcept nogil
cdef bint lacks_user(const Volume *v, uint32_t uid) noexcept nogil
cdef bint lacks_group(const Volume *v, uint32_t gid) noexcept nogil
cdef bint may_have_group(const Volume *v, uint32_t gid) noexcept nogil

cdef int check_change(const Volume *v, const struct_stat *st) noexcept nogil
cdef int check_open(const Volume *v, const struct_stat *st, int flags) noexcept nogil
cdef int check_named(Thread *t, int dir_fd, const char *name) noexcept nogil
cdef int check_node(const Volume *v, uint32_t mode) noexcept nogil
cdef bint allows(Thread *t, const struct_stat *st, uint32_t mask) noexcept nogil
cdef bint keeps_sgid(Thread *t, const struct_stat *st, bint checked) noexcept nogil

cdef int enter_caller(Thread *t, uint32_t mode) noexcept nogil
cdef void leave_caller(Thread *t) noexcept nogil
cdef int enter_content(Thread *t, const struct_stat *st, bint clears, bint checked) noexcept nogil
cdef void leave_content(
    Thread *t, const struct_stat *st, bint clears, uint64_t nodeid
) noexcept nogil
cdef int enter_clearing(Thread *t, uint32_t gid) noexcept nogil
cdef void leave_clearing(Thread *t) noexcept nogil
cdef int enter_mode(Thread *t, const struct_stat *st, uint32_t mode, bint known) noexcept nogil
cdef void leave_mode(Thread *t) noexcept nogil
cdef void set_umask(Thread *t, uint32_t mask) noexcept nogil

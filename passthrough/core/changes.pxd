"""Changes of attributes on the host: mode, owner, size and times."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.abi cimport FATTR_GID, FATTR_UID
from passthrough.core.libc cimport timespec
from passthrough.core.state cimport Thread


cdef enum:
    OWNER = FATTR_UID | FATTR_GID
    PERMISSIONS = 0o7777
    PRIVILEGES = 0o6000  # S_ISUID, S_ISGID


# The fields to change.
cdef struct Change:
    uint64_t nodeid
    uint64_t fh  # of the file that the caller truncates; 0: none
    uint32_t valid  # FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE
    uint32_t mode
    uint32_t uid
    uint32_t gid
    uint64_t size
    timespec times[2]  # access, modification; UTIME_OMIT leaves one alone
    bint clears  # suid and sgid bits go
    bint checked  # the kernel has checked the caller, see keeps_sgid


cdef bint changes_times(const Change *change) noexcept nogil
cdef int apply_change(Thread *t, void *data) noexcept nogil
cdef int may_take_power(Thread *t, uint64_t nodeid, int fd, bint truncates) noexcept nogil

"""Maps ids between the users of a volume and the files of the host; decides about squashing."""

from libc.stdint cimport uint32_t

from passthrough.core.state cimport Ids, Thread, Volume


# Not an enum: these exceed its type, int.
cdef extern from "<stdint.h>" nogil:
    # INVALID_UID, include/linux/uidgid.h: setfsuid(2) ignores it, chown(2) changes nothing.
    const uint32_t NO_ID "UINT32_MAX"
    # An owner that no caller equals. No caller's capabilities reach its files.
    const uint32_t UNMAPPED "UINT32_MAX"
    # A group that is valid to the kernel. With an invalid group it would refuse the owner, too.
    const uint32_t UNMAPPED_GROUP "(UINT32_MAX - 1)"
    # A user or group for calls that create nothing: no file of the host is likely to have it.
    const uint32_t NO_FILES_ID "UINT32_C(0xFFFFFFF0)"


cdef int to_host(Volume *v, uint32_t uid, uint32_t gid, Ids *out) noexcept nogil
cdef int new_owner(Volume *v, const uint32_t *uid, const uint32_t *gid, Ids *out) noexcept nogil
cdef int new_group(const Volume *v, const uint32_t *gid, uint32_t *out) noexcept nogil
cdef void shown_ids(const Volume *v, uint32_t uid, uint32_t gid, Ids *out) noexcept nogil
cdef bint lacks_user(const Volume *v, uint32_t uid) noexcept nogil
cdef bint lacks_group(const Volume *v, uint32_t gid) noexcept nogil
cdef bint may_have_group(const Volume *v, uint32_t gid) noexcept nogil
cdef bint squashes(const Thread *t, uint32_t uid, uint32_t gid) noexcept nogil
cdef int acts_as(Thread *t, Ids *out) noexcept nogil

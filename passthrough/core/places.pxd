"""Mounts and places: where inodes lie."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.layout cimport NO_PLACE, RELEASE, Found, Mount, Tables, store32


cdef int enter_mount(Tables *t, uint64_t mount_id) noexcept nogil
cdef int add_mount(Tables *t, uint64_t mount_id, int fd, bint *taken) noexcept nogil
cdef int leave_mount(Tables *t, uint32_t mount) noexcept nogil
cdef uint32_t place_on(Tables *t, uint32_t mount, uint64_t device) noexcept nogil
cdef uint32_t place_at(Tables *t, uint32_t mount, uint64_t device) noexcept nogil


cdef inline uint32_t place_of(Tables *t, const Found *found) noexcept nogil:
    """Return the place of a file; `found.place` is that of its directory. Under the mutex."""
    if found.place >= t.header.places:
        return NO_PLACE
    if t.places[found.place].device == found.device:
        return found.place
    return place_at(t, t.places[found.place].mount, found.device)


cdef inline int drop_mount(Tables *t, uint32_t mount) noexcept nogil:
    """Count one user less, under the mutex; return as `leave_mount`."""
    cdef Mount *m = &t.mounts[mount]
    cdef int fd = m.fd
    m.users -= 1
    if m.users:
        return -1
    store32(&m.fd, -1, RELEASE)
    return fd

"""Mounts and places: where inodes lie. There are few, so a search goes through all.

A mount or place that inodes have left keeps its index. If it is found again, its files show the
numbers that they had. The kernel gives the ids of mounts that are gone to new ones.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from passthrough.core.libc cimport ENFILE, ENOENT
from passthrough.core.layout cimport (
    NO_PLACE, RELEASE, Mount, Place, Tables, store32,
)
from passthrough.core.slots cimport pthread_mutex_lock, pthread_mutex_unlock


cdef uint32_t _mount_of(Tables *t, uint64_t mount_id) noexcept nogil:
    cdef uint32_t index
    for index in range(t.header.mounts):
        if t.mounts[index].id == mount_id:
            return index
    return t.header.mounts


cdef int enter_mount(Tables *t, uint64_t mount_id) noexcept nogil:
    """Return the index of a mount that has users, for one more; or -ENOENT: `add_mount` adds it.

    A mount that is used can be unmounted only lazily, so its id is not given to another.
    """
    cdef uint32_t index
    cdef int result = -ENOENT
    pthread_mutex_lock(&t.mutex)
    index = _mount_of(t, mount_id)
    if index < t.header.mounts and t.mounts[index].users:
        t.mounts[index].users += 1
        result = <int>index
    pthread_mutex_unlock(&t.mutex)
    return result


cdef int add_mount(Tables *t, uint64_t mount_id, int fd, bint *taken) noexcept nogil:
    """Return the index of a mount for one more user, or -ENFILE.

    `taken` becomes whether the table has taken `fd`, which may be -1: another thread may be faster.
    """
    cdef uint32_t index
    cdef int result
    taken[0] = False
    pthread_mutex_lock(&t.mutex)
    index = _mount_of(t, mount_id)
    if index >= t.header.limits.places:
        result = -ENFILE
    else:
        result = <int>index
        if index == t.header.mounts:
            t.mounts[index] = Mount(id=mount_id, users=0, fd=-1)
            store32(<int32_t *>&t.header.mounts, <int32_t>(index + 1), RELEASE)
        if not t.mounts[index].users:
            store32(&t.mounts[index].fd, fd, RELEASE)
            taken[0] = True
        t.mounts[index].users += 1
    pthread_mutex_unlock(&t.mutex)
    return result


cdef int leave_mount(Tables *t, uint32_t mount) noexcept nogil:
    """Count one user less; return the descriptor to close if it was the last one, or -1."""
    cdef int fd
    pthread_mutex_lock(&t.mutex)
    fd = drop_mount(t, mount)
    pthread_mutex_unlock(&t.mutex)
    return fd


cdef uint32_t place_on(Tables *t, uint32_t mount, uint64_t device) noexcept nogil:
    """Return the place of a device on a mount, the same one whenever it is asked; or NO_PLACE."""
    cdef uint32_t place
    pthread_mutex_lock(&t.mutex)
    place = place_at(t, mount, device)
    pthread_mutex_unlock(&t.mutex)
    return place


cdef uint32_t place_at(Tables *t, uint32_t mount, uint64_t device) noexcept nogil:
    """As `place_on`, under the mutex."""
    cdef uint32_t index
    for index in range(t.header.places):
        if t.places[index].device == device and t.places[index].mount == mount:
            return index
    index = t.header.places
    if index >= t.header.limits.places or mount >= t.header.mounts:
        return NO_PLACE
    t.places[index] = Place(device=device, mount=mount, spare=0)
    store32(<int32_t *>&t.header.places, <int32_t>(index + 1), RELEASE)
    return index

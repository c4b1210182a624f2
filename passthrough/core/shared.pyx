"""Memory that workers of a volume share.

The process that workers are cloned from maps it, at the same address for each. Another program that
goes on with the volume maps it by its descriptor (passthrough/worker/predecessor.py).
"""

from libc.stdint cimport int64_t, uint64_t

from passthrough.core.libc cimport (
    EPROTO, MAP_FAILED, MAP_NORESERVE, MAP_SHARED, MFD_CLOEXEC, PROT_READ, PROT_WRITE, close, errno,
    fcntl, fstat, ftruncate, memfd_create, mmap, struct_stat,
)

cdef extern from "<sys/mman.h>" nogil:
    unsigned int MFD_ALLOW_SEALING

cdef extern from "<fcntl.h>" nogil:
    int F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL


cdef int make_memory(const char *name, uint64_t size) noexcept nogil:
    """Return a memfd of zeros that keeps its size, or -errno; only used pages take memory."""
    cdef int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)
    cdef int error
    if fd < 0:
        return -errno
    if (
        ftruncate(fd, <int64_t>size) < 0
        or fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0
    ):
        error = errno
        close(fd)
        return -error
    return fd


cdef void *map_memory(int *fd, const char *name, uint64_t size, int *error) noexcept nogil:
    """Map the memory `fd`, or new memory if it is -1; for munmap(2) and close(2).

    If NULL is returned, `error` has the errno; EPROTO: the memory has another size.
    """
    cdef struct_stat st
    cdef void *start = MAP_FAILED
    cdef bint made = fd[0] < 0
    if made:
        fd[0] = make_memory(name, size)
        if fd[0] < 0:
            error[0] = -fd[0]
            return NULL
    if fstat(fd[0], &st) == 0 and st.st_size != <int64_t>size:
        error[0] = EPROTO
    else:
        start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd[0], 0)
        error[0] = errno
    if start == MAP_FAILED and made:
        close(fd[0])
        fd[0] = -1
    return NULL if start == MAP_FAILED else start

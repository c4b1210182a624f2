"""Names in directories: looked up, forgotten, given and taken away."""

from libc.stdint cimport uint32_t

from passthrough.core.abi cimport FUSE_BATCH_FORGET, fuse_in_header
from passthrough.core.libc cimport EIO
from passthrough.core.state cimport Thread, only_text, text


cdef int do_lookup(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_forget(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_batch_forget(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil
cdef int do_mknod(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_mkdir(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_symlink(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_link(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_unlink(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_rmdir(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_readlink(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil


cdef enum:
    LONG_REQUEST = 16 * 4096  # bytes


cdef inline bint leaves_pages(const fuse_in_header *h) noexcept nogil:
    """Return whether the pages that a request has filled go back to the system.

    A BATCH_FORGET may have 65,000 rows, and seldom comes: to fill a page anew costs more.
    """
    return h.opcode == FUSE_BATCH_FORGET and h.len > LONG_REQUEST


cdef inline int two_texts(
    const char *arg, uint32_t length, uint32_t at, const char **first, const char **second
) noexcept nogil:
    """Find the two texts that end a request, from byte `at` on."""
    cdef uint32_t size = 0
    first[0] = text(arg, length, at, &size)
    if first[0] == NULL:
        return -EIO
    second[0] = only_text(arg, length, at + size)
    return -EIO if second[0] == NULL else 0

"""A ring of io_uring with one command, in the thread that calls."""

from libc.string cimport memset

from passthrough.core.uring cimport (
    Ring, close_ring, open_ring, prepare, submit, submit_and_wait, wait_result,
)


def run(int fd, int times):
    """Give a ring the same command so often, in both ways; return 0, or the first -errno."""
    cdef Ring ring
    cdef int result, _turn
    cdef int found = 0
    memset(&ring, 0, sizeof(ring))
    result = open_ring(&ring)
    if result < 0:
        return result
    with nogil:
        for _turn in range(times):
            prepare(&ring, fd, 0, 0, NULL, 0)
            result = submit_and_wait(&ring)
            if result < 0:
                found = result
                break
            prepare(&ring, fd, 0, 0, NULL, 0)
            result = submit(&ring)
            if result == 0:
                result = wait_result(&ring)
            if result < 0:
                found = result
                break
    close_ring(&ring)
    return found

"""Processes that share their table of descriptors: clone(2) with CLONE_FILES, by its number.

Parent and child see the same open files under the same numbers, each with memory of its own but
for what is mapped MAP_SHARED. A descriptor stays open when the process that opened it ends. fork(3)
of the C library cannot do that. So `clone` does what else it does, for a process with one thread:
no lock is held then, neither the C library's nor Python's.

`copy_descriptors` gives one process the descriptors of another, under the same numbers.

`exchange` decides between processes: of those that expect the same word, one alone changes it.
"""

import os

from libc.stdint cimport uint64_t

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

from passthrough.core.layout cimport SEQ_CST
from passthrough.core.libc cimport (
    EBUSY, EMFILE, F_DUPFD_CLOEXEC, SYS_gettid, close, errno, fcntl, prctl, syscall,
)

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()

cdef extern from "<sched.h>" nogil:
    enum:
        CLONE_FILES

cdef extern from "<signal.h>" nogil:
    enum:
        SIGCHLD

cdef extern from "<sys/prctl.h>" nogil:
    enum:
        PR_GET_TID_ADDRESS

cdef extern from "<sys/syscall.h>" nogil:
    enum:
        SYS_clone, SYS_pidfd_getfd

cdef extern from * nogil:
    bint compare_exchange "__atomic_compare_exchange_n"(
        uint64_t *place, uint64_t *expected, uint64_t wanted, bint weak, int success, int failure
    )

# Duplicates that fill gaps, at most: 1 s of work. A worker may open a descriptor of any number.
MOST_FILLED = 1 << 20

# The C library's own note of the thread's id, which pthread_mutex_lock(3) compares. The kernel
# knows the place in a process that the C library has made (CONFIG_CHECKPOINT_RESTORE).
cdef int *_noted_tid = NULL


def clone():
    """Make a child that shares the table of descriptors; return its pid, in the child 0.

    The calling thread must be the only one of the process. The child sends SIGCHLD when it ends.

    Raises:
        OSError: EAGAIN, there are too many processes; ENOMEM.
    """
    global _noted_tid
    cdef long pid
    cdef int number = 0
    if _noted_tid == NULL and prctl(PR_GET_TID_ADDRESS, &_noted_tid) < 0:
        _noted_tid = NULL
    PyOS_BeforeFork()
    # The flags come first on all architectures that seccomp.py knows; the rest is 0.
    pid = syscall(SYS_clone, <long>(CLONE_FILES | SIGCHLD), 0, 0, 0, 0)
    if pid == 0:
        if _noted_tid != NULL:
            _noted_tid[0] = <int>syscall(SYS_gettid)
        PyOS_AfterFork_Child()
        return 0
    number = errno
    PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(number, os.strerror(number), "clone(2)")
    return pid


def copy_descriptors(int process_fd, numbers, *, int most_filled=MOST_FILLED):
    """Copy these descriptors of a process under the same numbers, which are free here.

    pidfd_getfd(2) gives the lowest free number. So duplicates of `process_fd` fill the gaps between
    the numbers meanwhile. No duplicate of a copied one is closed: that would flush the file, and
    end the locks of fcntl(2) that this process has on it.

    Raises:
        OSError: EPERM, this process may not; EBADF, one is not open there; EBUSY, one is open here;
            EINVAL or EMFILE, one is too high here, or more than `most_filled` numbers between
            them are free.
    """
    cdef int number, fd
    cdef int free_from = 0
    cdef list filled = []  # first and end of runs of numbers
    try:
        for number in sorted(numbers):
            most_filled = _fill(process_fd, free_from, number, filled, most_filled)
            fd = <int>syscall(SYS_pidfd_getfd, process_fd, number, 0)
            if fd < 0:
                raise _failed("pidfd_getfd(2)")
            if fd != number:
                close(fd)
                raise OSError(EBUSY, os.strerror(EBUSY), f"descriptor {number}")
            free_from = number + 1
    finally:
        for first, end in filled:
            os.closerange(first, end)


cdef int _fill(int process_fd, int start, int end, list filled, int most) except -1:
    """Have no number free from `start` on and below `end`, by duplicates of `process_fd`.

    Return how many more than these there may be, of `most`.
    """
    cdef int fd
    cdef list run = None
    while start < end:
        fd = fcntl(process_fd, F_DUPFD_CLOEXEC, start)
        if fd < 0:
            raise _failed("fcntl(2)")
        if fd >= end:
            close(fd)
            return most
        if not most:
            close(fd)
            raise OSError(EMFILE, f"too many free numbers below the descriptor {end}")
        most -= 1
        if run is None or fd != start:
            run = [fd, fd]
            filled.append(run)
        start = run[1] = fd + 1
    return most


cdef _failed(str call):
    cdef int number = errno
    return OSError(number, os.strerror(number), call)


def exchange(page not None, Py_ssize_t at, uint64_t expected, uint64_t wanted):
    """Store `wanted` at the byte `at` of a buffer if `expected` is there; return whether."""
    cdef Py_buffer view
    PyObject_GetBuffer(page, &view, PyBUF_WRITABLE)
    try:
        if at < 0 or at % 8 or at + 8 > view.len:
            raise ValueError("there is no word")
        return compare_exchange(
            <uint64_t *>(<char *>view.buf + at), &expected, wanted, False, SEQ_CST, SEQ_CST
        )
    finally:
        PyBuffer_Release(&view)

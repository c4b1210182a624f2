"""Counts requests in memory that outlives the process, and that the plugin reads.

A thread counts a request right before the reply is complete. So a caller that has its answer finds
the request counted. If the process is killed before, the request is not counted, and its successor
serves and counts it. Only if the process is killed between the two, within nanoseconds, the request
counts twice.

Files opened and bytes moved are counted with the request. Inodes and open files are numbers of the
present: a thread that changes the tables stores them, and so does a worker that takes over.

The time of a request is from the end of the read(2) that has brought the request until its reply is
made. The waits for locks are part of it, in SETLK and SETLKW alone. If a request is served again,
its time begins anew.

Each thread of the first ones has a row of its own, so that processors share no line of their
caches. The additions are atomic all the same, because later threads share rows. A reader disturbs
no thread, and sees at most some parts of a request without the others.

A process serves one volume. So the memory is the process's, as that of crashes (crash.pyx).
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

from passthrough.core.abi cimport (
    FOPEN_DIRECT_IO, FOPEN_PASSTHROUGH, FUSE_CREATE, FUSE_OPEN, FUSE_READ, FUSE_TMPFILE, FUSE_WRITE,
    fuse_entry_out, fuse_open_out, fuse_write_out,
)
from passthrough.core.layout cimport DIRECTORIES, FILES, RELAXED, store64

cdef extern from * nogil:
    uint64_t add64 "__atomic_fetch_add"(uint64_t *place, uint64_t number, int order)
    int leading_zeros "__builtin_clzll"(unsigned long long number)

cdef Counted _own  # until there is other memory; pages that nothing has touched take none
cdef Counted *_counted = &_own
cdef Py_buffer _memory  # of `_counted`, once it is not `_own`


def count_in(memory not None, Py_ssize_t at):
    """Count from now on in `memory`, a buffer that can be written, from the byte `at` on.

    No thread may serve meanwhile.
    """
    global _counted, _memory
    cdef Py_buffer memory_of
    PyObject_GetBuffer(memory, &memory_of, PyBUF_WRITABLE)
    if at < 0 or at % 8 or at + <Py_ssize_t>sizeof(_own) > memory_of.len:
        PyBuffer_Release(&memory_of)
        raise ValueError("no room for the counters there")
    if _counted != &_own:
        PyBuffer_Release(&_memory)
    _memory = memory_of
    _counted = <Counted *>(<char *>memory_of.buf + at)


cdef int bucket_of(uint64_t ns) noexcept nogil:
    """Return the bucket that counts times of so many nanoseconds."""
    cdef int bits = 64 - leading_zeros(ns | 1)
    return min(max(bits - <int>FIRST_BITS, 0), <int>BUCKETS - 1)


cdef void count(uint32_t row, uint32_t opcode, int error, uint64_t began) noexcept nogil:
    """Count a request that began at a time of `nanoseconds`; `error` is its errno, or 0."""
    cdef Row *r = &_counted.rows[row % ROWS]
    cdef Cell *cell = &r.cells[opcode if opcode < FUSE_OPCODES else 0]
    cdef uint64_t ns = nanoseconds() - began
    add64(&cell.ns, ns, RELAXED)
    add64(&cell.buckets[bucket_of(ns)], 1, RELAXED)
    if error:
        add64(&r.errors[error if 0 < error < ERRORS else 0], 1, RELAXED)


cdef void count_reply(uint32_t row, uint32_t opcode, const char *body, int length) noexcept nogil:
    """Count what a reply without an error gives: bytes of data, or an open file."""
    cdef Sums *sums = &_counted.rows[row % ROWS].sums
    if opcode == FUSE_READ:
        add64(&sums.bytes_read, <uint64_t>length, RELAXED)
    elif opcode == FUSE_WRITE and length == <int>sizeof(fuse_write_out):
        add64(&sums.bytes_written, (<const fuse_write_out *>body).size, RELAXED)
    elif opcode == FUSE_OPEN and length == <int>sizeof(fuse_open_out):
        _count_open(sums, <const fuse_open_out *>body)
    elif (opcode == FUSE_CREATE or opcode == FUSE_TMPFILE) and (
        length == <int>(sizeof(fuse_entry_out) + sizeof(fuse_open_out))
    ):
        _count_open(sums, <const fuse_open_out *>(body + sizeof(fuse_entry_out)))


cdef void _count_open(Sums *sums, const fuse_open_out *out) noexcept nogil:
    """Count an open file; with `no_open` CREATE answers that none is needed, fh 0.

    FOPEN_DIRECT_IO has the kernel send reads and writes to the worker, also with a backing id.
    """
    if not out.fh:
        return
    add64(&sums.opens, 1, RELAXED)
    if out.open_flags & (FOPEN_PASSTHROUGH | FOPEN_DIRECT_IO) == FOPEN_PASSTHROUGH:
        add64(&sums.passing_opens, 1, RELAXED)


cdef void show(const Tables *t) noexcept nogil:
    """Store what the tables hold now; the caller has their mutex, or is alone."""
    cdef Gauges *gauges = &_counted.gauges
    store64(&gauges.inodes, t.header.inodes, RELAXED)
    store64(&gauges.files, t.header.opens[FILES], RELAXED)
    store64(&gauges.directories, t.header.opens[DIRECTORIES], RELAXED)
    store64(&gauges.passing_files, t.passing, RELAXED)

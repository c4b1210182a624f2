"""io_uring with one command at a time, io_uring(7)."""

from libc.stdint cimport int32_t, uint32_t, uint64_t


# struct io_uring_sqe of IORING_OP_URING_CMD, with the 80 bytes that are the command's own.
cdef struct Command:
    unsigned char opcode
    unsigned char flags
    unsigned short ioprio
    int32_t fd
    uint32_t cmd_op
    uint32_t pad1
    uint64_t addr
    uint32_t len
    uint32_t uring_cmd_flags
    uint64_t user_data
    uint64_t unused
    uint64_t own[10]


# A ring of the one thread that has made it.
cdef struct Ring:
    char *memory
    size_t size
    Command *command
    uint32_t number  # by which the thread knows the ring without a descriptor
    int32_t *sq_tail
    int32_t *head
    int32_t *tail
    char *results
    int32_t taken
    int32_t given


cdef int open_ring(Ring *r) noexcept nogil
cdef void close_ring(Ring *r) noexcept nogil
cdef void prepare(
    Ring *r, int fd, uint32_t operation, uint64_t third, const void *parts, uint32_t count
) noexcept nogil
cdef int submit(Ring *r) noexcept nogil
cdef int submit_and_wait(Ring *r) noexcept nogil
cdef int wait_result(Ring *r) noexcept nogil
cdef bint has_result(const Ring *r) noexcept nogil

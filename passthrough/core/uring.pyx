"""io_uring with one command at a time, io_uring(7): given to the kernel, waited for, looked at.

Every system call of io_uring is here. A ring is used by the one thread that has made it, and the
kernel adds results in that thread's own calls only (IORING_SETUP_DEFER_TASKRUN). So this side and
the kernel's never touch the shared memory at once, and plain loads and stores will do on every
processor. The ring refuses all commands but IORING_OP_URING_CMD, for as long as it lives.

No descriptor leads to a ring (IORING_REGISTER_RING_FDS), because files and inodes need the
descriptors. The constants are those of linux/io_uring.h, Linux 6.6: the header of the machine that
builds may be older.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from passthrough.core.layout cimport ACQUIRE, RELEASE, load32, store32
from passthrough.core.libc cimport (
    EAGAIN, EBUSY, EINTR, MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, close, errno, mmap, munmap,
    syscall, timespec,
)

cdef extern from "<time.h>" nogil:
    int nanosleep(const timespec *time, timespec *left)

cdef enum:
    # The same numbers on every architecture.
    SYS_SETUP = 425
    SYS_ENTER = 426
    SYS_REGISTER = 427
    SETUP_R_DISABLED = 1 << 6
    SETUP_SQE128 = 1 << 10
    SETUP_SINGLE_ISSUER = 1 << 12
    SETUP_DEFER_TASKRUN = 1 << 13
    SETUP_NO_SQARRAY = 1 << 16
    ENTER_GETEVENTS = 1
    ENTER_REGISTERED_RING = 1 << 4
    REGISTER_RESTRICTIONS = 11
    REGISTER_ENABLE_RINGS = 12
    REGISTER_RING_FDS = 20
    UNREGISTER_RING_FDS = 21
    RESTRICTION_REGISTER_OP = 0
    RESTRICTION_SQE_OP = 1
    OP_URING_CMD = 46
    OFFSET_SQES = 0x10000000
    RESULT_SIZE = 16  # struct io_uring_cqe
    RESULT_AT = 8  # its field res
    RESULTS = 2  # for one command there are two results' room
    AGAIN_NS = 1000 * 1000

cdef extern from "<stdint.h>" nogil:
    const uint32_t USE_REGISTERED_RING "(UINT32_C(1) << 31)"
    const uint32_t ANYWHERE "UINT32_MAX"


cdef struct Params:  # struct io_uring_params
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd
    uint32_t resv[3]
    # sq_off
    uint32_t sq_head, sq_tail, sq_ring_mask, sq_ring_entries, sq_flags, sq_dropped, sq_array, resv1
    uint64_t sq_user_addr
    # cq_off
    uint32_t cq_head, cq_tail, cq_ring_mask, cq_ring_entries, cq_overflow, cq_cqes, cq_flags, resv2
    uint64_t cq_user_addr


cdef struct Restriction:  # struct io_uring_restriction
    uint16_t opcode
    uint8_t operation
    uint8_t resv
    uint32_t resv2[3]


cdef struct Update:  # struct io_uring_rsrc_update
    uint32_t offset
    uint32_t resv
    uint64_t data


cdef int open_ring(Ring *r) noexcept nogil:
    """Make a ring in memory that is 0: 0, or -errno.

    The errno says that this kernel has no io_uring, or not all that is used of it, or that it is
    forbidden (the sysctl kernel.io_uring_disabled, a seccomp filter).
    """
    cdef Params params
    cdef int fd, result
    memset(&params, 0, sizeof(params))
    params.flags = (
        SETUP_R_DISABLED | SETUP_SQE128 | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN
        | SETUP_NO_SQARRAY
    )
    fd = <int>syscall(SYS_SETUP, 1, &params)
    if fd < 0:
        return -errno
    result = _map(r, fd, &params)
    if result == 0:
        result = _restrict(fd)
    if result == 0:
        result = _register(r, fd)
    if result == 0 and syscall(SYS_REGISTER, fd, REGISTER_ENABLE_RINGS, NULL, 0) < 0:
        result = -errno
    close(fd)
    if result < 0:
        _unmap(r)
    return result


cdef int _map(Ring *r, int fd, const Params *params) noexcept nogil:
    cdef void *memory
    r.size = params.cq_cqes + RESULTS * RESULT_SIZE
    memory = mmap(NULL, r.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if memory == MAP_FAILED:
        return -errno
    r.memory = <char *>memory
    memory = mmap(NULL, sizeof(Command), PROT_READ | PROT_WRITE, MAP_SHARED, fd, OFFSET_SQES)
    if memory == MAP_FAILED:
        return -errno
    r.command = <Command *>memory
    r.sq_tail = <int32_t *>(r.memory + params.sq_tail)
    r.head = <int32_t *>(r.memory + params.cq_head)
    r.tail = <int32_t *>(r.memory + params.cq_tail)
    r.results = r.memory + params.cq_cqes
    return 0


cdef int _restrict(int fd) noexcept nogil:
    """Have the ring refuse all that is not needed, once it is enabled."""
    cdef Restriction rules[2]
    memset(rules, 0, sizeof(rules))
    rules[0].opcode = RESTRICTION_SQE_OP
    rules[0].operation = OP_URING_CMD
    rules[1].opcode = RESTRICTION_REGISTER_OP
    rules[1].operation = UNREGISTER_RING_FDS
    if syscall(SYS_REGISTER, fd, REGISTER_RESTRICTIONS, rules, 2) < 0:
        return -errno
    return 0


cdef int _register(Ring *r, int fd) noexcept nogil:
    cdef Update update
    memset(&update, 0, sizeof(update))
    update.offset = ANYWHERE
    update.data = fd
    if syscall(SYS_REGISTER, fd, REGISTER_RING_FDS, &update, 1) < 0:
        return -errno
    r.number = update.offset
    return 0


cdef void _unmap(Ring *r) noexcept nogil:
    """Each map of a ring's memory holds the ring as well."""
    if r.memory != NULL:
        munmap(r.memory, r.size)
    if r.command != NULL:
        munmap(r.command, sizeof(Command))
    r.memory = NULL
    r.command = NULL


cdef void close_ring(Ring *r) noexcept nogil:
    """Close the ring; a command that the kernel has is cancelled."""
    cdef Update update
    _unmap(r)
    memset(&update, 0, sizeof(update))
    update.offset = r.number
    syscall(SYS_REGISTER, r.number, UNREGISTER_RING_FDS | USE_REGISTERED_RING, &update, 1)


cdef void prepare(
    Ring *r, int fd, uint32_t operation, uint64_t third, const void *parts, uint32_t count
) noexcept nogil:
    """Make the next command: `third` is the third of its own words, the others are 0.

    `parts` is an array of `count` struct iovec.
    """
    memset(r.command, 0, sizeof(Command))
    r.command.opcode = OP_URING_CMD
    r.command.fd = fd
    r.command.cmd_op = operation
    r.command.addr = <uint64_t><size_t>parts
    r.command.len = count
    r.command.own[2] = third


cdef int submit(Ring *r) noexcept nogil:
    """Give the command to the kernel, which has it when this returns; wait for nothing."""
    _advance(r)
    return _enter(r, 1, 0, 0)


cdef int submit_and_wait(Ring *r) noexcept nogil:
    """Give the command to the kernel, and return its result: -errno for a failure."""
    cdef int result
    _advance(r)
    result = _enter(r, 1, 1, ENTER_GETEVENTS)
    return result if result < 0 else wait_result(r)


cdef int wait_result(Ring *r) noexcept nogil:
    """Wait for the result of the command that the kernel has."""
    cdef int result
    while not has_result(r):
        result = _enter(r, 0, 1, ENTER_GETEVENTS)
        if result < 0:
            return result
    result = (<int32_t *>(r.results + (r.taken & 1) * RESULT_SIZE + RESULT_AT))[0]
    r.taken = <int32_t>(<uint32_t>r.taken + 1)
    store32(r.head, r.taken, RELEASE)
    return result


cdef bint has_result(const Ring *r) noexcept nogil:
    """Return whether `wait_result` would return at once."""
    return load32(r.tail, ACQUIRE) != r.taken


cdef int _enter(const Ring *r, uint32_t given, uint32_t wanted, uint32_t flags) noexcept nogil:
    """Call io_uring_enter(2) until it succeeds, or return -errno.

    If the kernel lacks memory for a command (EAGAIN) or for a result (EBUSY), it has taken nothing,
    and a queue must not end: the call is made again 1 ms later.
    """
    cdef timespec pause
    while syscall(SYS_ENTER, r.number, given, wanted, flags | ENTER_REGISTERED_RING, NULL, 0) < 0:
        if errno == EAGAIN or errno == EBUSY:
            pause.tv_sec, pause.tv_nsec = 0, AGAIN_NS
            nanosleep(&pause, NULL)
        elif errno != EINTR:
            return -errno
    return 0


cdef void _advance(Ring *r) noexcept nogil:
    r.given = <int32_t>(<uint32_t>r.given + 1)
    store32(r.sq_tail, r.given, RELEASE)


def try_io_uring():
    """Make a ring as a queue's thread does, and close it; return 0 or the errno."""
    cdef Ring ring
    cdef int result
    memset(&ring, 0, sizeof(ring))
    result = open_ring(&ring)
    if result == 0:
        close_ring(&ring)
    return -result

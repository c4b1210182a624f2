"""The journal of a request in hand: a successor learns from it how far its predecessor came.

Each thread has a journal, in memory that outlives the process (device.pyx). A store there is
enough: if the process is killed, the stores that its threads have made are there, in their order.

A request is in hand from read(2) until `done` has its number. A handler calls `begin_call` right
before a system call that must not be made twice. A successor that serves the request again finds
`Thread.again` set then, and treats the traces of that call as its success.

The tables announce each lookup and each open file under their mutex before they count it. So a
successor can take back what the kernel has not been told of. `settled` lags behind `count` only
inside of the mutex: if the last entry is not settled, `before` tells whether it was made, because
no other thread has changed that inode since.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from passthrough.core.layout cimport RELEASE, SEQ_CST, store32, store64
from passthrough.core.libc cimport CLOCK_REALTIME_COARSE, clock_gettime, timespec

cdef extern from * nogil:
    # Keeps the compiler from moving stores: a killed thread has made its stores in this order.
    void in_order "__atomic_signal_fence"(int order)


cdef enum:
    LOG = 487  # the journal ends where a request begins: device.REQUEST_AT
    MOST_CRASHES = 2


# Journal.stage
cdef enum:
    BEGUN = 0
    CALLED = 1  # a call that must not be made twice may have been made
    ANSWERED = 2  # the reply is complete: it may be sent again


# The first 64 bytes are what each request changes.
cdef struct Journal:
    uint64_t done  # the number of the last request that needs nothing more
    uint64_t unique  # the request of all below; not the one in hand: nothing is noted of that yet
    uint32_t stage
    uint32_t reply_length
    uint32_t guilty  # threads that this request has crashed
    # FUSE passthrough: above 0, an id that the request has opened or takes away; below 0, one
    # above -1 - backing is being opened; 0: none.
    int32_t backing
    uint32_t opened_table
    uint32_t count  # entries of `log` announced; of FORGET and BATCH_FORGET: entries of the request
    uint32_t settled  # of which the change is surely made
    uint32_t refused  # the file has lost its last name: ESTALE, `is_stale`
    uint64_t opened_fh  # announced before it is published; 0: none
    uint64_t before  # `lookups` of the inode of the last entry, before the change
    int64_t called_s  # CLOCK_REALTIME_COARSE, just before the first call
    int64_t called_ns
    uint64_t found[4]  # for the handler of one opcode; valid with stage CALLED
    int32_t removed_fd  # of the file whose name is being taken away, `note_removal`; 0: none
    uint32_t removed_place  # of its directory
    uint64_t log[LOG]  # nodeids of which the request has counted a lookup


cdef inline void begin_request(Journal *j, uint64_t unique) noexcept nogil:
    """Forget the request before; `unique` is stored last."""
    j.stage = BEGUN
    j.reply_length = 0
    j.guilty = 0
    j.backing = 0
    j.count = j.settled = 0
    j.opened_fh = 0
    j.refused = 0
    j.removed_fd = 0
    store64(&j.unique, unique, RELEASE)


cdef inline bint is_refused(const Journal *j) noexcept nogil:
    """Return whether the request has crashed too many workers to be served again."""
    return j.guilty >= MOST_CRASHES


cdef inline void note_reply(Journal *j, uint32_t length) noexcept nogil:
    """Note that the reply is complete, with its header `length` bytes long."""
    j.reply_length = length
    store32(<int32_t *>&j.stage, ANSWERED, RELEASE)


cdef inline void end_request(Journal *j) noexcept nogil:
    """Note that the request needs nothing more: it is answered, or done if it has no answer."""
    store64(&j.done, j.unique, RELEASE)


cdef inline void begin_call(Journal *j) noexcept nogil:
    """Note that a call which must not be made twice comes next.

    The handler stores `found` before. If the request is served again, the time stays that of the
    first try.
    """
    cdef timespec now
    if j.stage == CALLED:
        return
    clock_gettime(CLOCK_REALTIME_COARSE, &now)
    j.called_s = now.tv_sec
    j.called_ns = now.tv_nsec
    store32(<int32_t *>&j.stage, CALLED, RELEASE)


cdef inline void note_removal(Journal *j, int fd, uint32_t place) noexcept nogil:
    """Note the file whose name is about to be taken away, or with 0 that `fd` is no longer needed.

    A successor pins the file in place of a thread that has died before that (takeover.pyx). So the
    thread drops the note before it closes the descriptor.
    """
    if j == NULL:
        return
    j.removed_place = place
    store32(&j.removed_fd, fd, RELEASE)
    in_order(SEQ_CST)


# Changes of the tables. Without a journal (NULL) nothing is noted.


cdef inline bint is_full(const Journal *j) noexcept nogil:
    """Return whether the log has no room for one more lookup."""
    return j != NULL and j.count >= LOG


cdef inline void announce_lookup(Journal *j, uint64_t nodeid, uint64_t before) noexcept nogil:
    """Note that one lookup is about to be counted; `before` is the number there is."""
    if j == NULL:
        return
    if j.count < LOG:
        j.log[j.count] = nodeid
    _announce(j, before)


cdef inline void announce_forget(Journal *j, uint64_t nodeid, uint64_t before) noexcept nogil:
    """Note that the next entry of a FORGET is about to be taken off `before` lookups."""
    if j == NULL:
        return
    j.log[0] = nodeid
    _announce(j, before)


cdef inline void _announce(Journal *j, uint64_t before) noexcept nogil:
    store64(&j.before, before, RELEASE)
    store32(<int32_t *>&j.count, <int32_t>(j.count + 1), RELEASE)
    in_order(SEQ_CST)


cdef inline void note_settled(Journal *j) noexcept nogil:
    """Note that the change announced last is made."""
    if j != NULL:
        store32(<int32_t *>&j.settled, <int32_t>j.count, RELEASE)


cdef inline void announce_return(Journal *j, uint64_t nodeid, uint64_t before) noexcept nogil:
    """Note that the lookup in the last entry is about to be taken back, down to `before`."""
    if j == NULL or not 0 < j.count <= LOG or j.log[j.count - 1] != nodeid:
        return
    store64(&j.before, before, RELEASE)
    store32(<int32_t *>&j.settled, <int32_t>(j.count - 1), RELEASE)
    in_order(SEQ_CST)


cdef inline void end_return(Journal *j) noexcept nogil:
    """Drop the last entry, if `announce_return` has found it."""
    if j != NULL:
        store32(<int32_t *>&j.count, <int32_t>j.settled, RELEASE)


cdef inline void announce_open(Journal *j, int table, uint64_t fh) noexcept nogil:
    """Note that an open file is about to be published."""
    if j == NULL:
        return
    j.opened_table = <uint32_t>table
    store64(&j.opened_fh, fh, RELEASE)
    in_order(SEQ_CST)


cdef inline void note_backing(Journal *j, int32_t backing) noexcept nogil:
    """Note an id of FUSE passthrough, see Journal.backing."""
    if j == NULL:
        return
    store32(&j.backing, backing, RELEASE)
    in_order(SEQ_CST)

"""A process goes on where another one was killed.

Both share the table of descriptors and the memory of tables, requests and locks. The process that
takes over has one thread, and is as it was before the first worker came: its own memory knows of no
request. It may be killed at any instruction of this, and another one begins again.

0. The memory is checked: the dead worker may have been taken over by an attacker (damage.pyx).
1. A request is in hand if its number is not that of the last request done at its place. If the
   journal has nothing of it, the kernel is asked: it may have ended the request, see device.pyx.
2. For each one, the journal and the tables tell whether the change announced last was made.
3. The lookups and open files of requests without a reply are taken back (settle.pyx).
4. Tables and locks make anew all that is derived (memory.pyx, locks.pyx).
5. Files whose names were taken away are pinned, as the thread had begun to (names.pyx).
6. Lost ids are closed. Lost descriptors are found (lost.pyx). Their locks end before threads serve,
   if servers answer, and the descriptors are closed afterwards.
7. A thread for each request in hand serves it again, or sends its reply (crew.pyx, resumed.pyx).
"""

from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.crew cimport MAX_SLOTS, SERVING, Slot, adopt_places, start_thread
from passthrough.core.damage cimport clear_unused, find_damage
from passthrough.core.descriptions cimport clear_locks
from passthrough.core.device cimport (
    REQUEST_AT, REQUEST_ROOM, give_all_pages_back, is_awaited,
)
from passthrough.core.grants cimport pin_fd
from passthrough.core.journal cimport ANSWERED, Journal, note_removal
from passthrough.core.layout cimport ACQUIRE, RELEASE, SEQ_CST, Tables, add32, load32, store32
from passthrough.core.libc cimport (
    AT_EMPTY_PATH, AT_STATX_DONT_SYNC, EBADF, EBUSY, ENOMEM, EPROTO, STATX_BASIC_STATS, close,
    errno, makedev, statx, struct_statx, timespec,
)
from passthrough.core.locks cimport locks_recover
from passthrough.core.loop cimport is_silent
from passthrough.core.lost cimport close_ids, find_lost
from passthrough.core.memory cimport recover
from passthrough.core.rare cimport report
from passthrough.core.settle cimport drop_unopened, settle, undo
from passthrough.core.state cimport REPORT_DAMAGE, Volume
from passthrough.core.steps cimport end_of_death

cdef extern from "<time.h>" nogil:
    int nanosleep(const timespec *time, timespec *left)

cdef enum:
    LONGEST_MS = 1000  # that the callers of requests in hand wait for a server

# Ending.state
cdef enum:
    BEGUN = 0
    DONE = 1  # one of the two threads has left


# Lost descriptors follow, whose locks a thread ends.
cdef struct Ending:
    int32_t state
    int32_t spare


cdef inline Journal *_journal(const Slot *slot) noexcept nogil:
    return <Journal *>slot.buffers.request


cdef inline const fuse_in_header *_request(const Slot *slot) noexcept nogil:
    return <const fuse_in_header *>(slot.buffers.request + REQUEST_AT)


cdef bint _is_in_hand(const Volume *v, const Slot *slot) noexcept nogil:
    """Return whether the request at a place was read, and needs something more."""
    cdef const fuse_in_header *h = _request(slot)
    if h.unique == _journal(slot).done:
        return False
    return _journal(slot).unique == h.unique or is_silent(h) or is_awaited(v, h.unique)


cdef inline bint _is_noted(const Slot *slot) noexcept nogil:
    """Return whether the journal tells of the request that the slot resumes."""
    return slot.resumes and _journal(slot).unique == _request(slot).unique


cdef inline bint _is_undone(const Slot *slot) noexcept nogil:
    """Return whether the kernel knows nothing of what the request has counted and opened."""
    return _is_noted(slot) and _journal(slot).stage != ANSWERED


cdef int take_over(Crew *c, const int *kept, int kept_count, Lost **lost) noexcept nogil:
    """Take over tables, requests and locks; return how many requests are in hand, or -errno.

    `kept`: descriptors that are not of the core's. Threads may start afterwards. -EPROTO: the
    memory is damaged.
    """
    cdef Tables *t = c.volume.tables
    cdef Slot *slot
    cdef int index, result
    if c.top:
        return -EBUSY
    end_of_death(t)
    result = _check(c)
    if result == 0:
        result = adopt_places(c)
    if result == 0:
        result = _check_requests(c)
    if result < 0:
        return result
    for index in range(c.top):
        slot = c.slots[index]
        if _is_in_hand(c.volume, slot):
            slot.resumes = True
            store32(&slot.state, SERVING, RELEASE)
            c.size += 1
            if _is_undone(slot):
                settle(t, _journal(slot), _request(slot))
        else:
            _journal(slot).done = _request(slot).unique
            give_all_pages_back(&slot.buffers)  # of a thread that may never come again
    c.resuming = c.size
    for index in range(c.top):
        if _is_undone(c.slots[index]):
            undo(t, _journal(c.slots[index]), _request(c.slots[index]))
    drop_unopened(t)
    recover(t)
    result = locks_recover(c.volume)
    if result < 0:
        return result
    for index in range(c.top):
        if _is_undone(c.slots[index]):
            _pin_removed(t, _journal(c.slots[index]))
    _close_ids(c)
    result = _note_lost(c.volume, kept, kept_count, lost)
    return c.size if result >= 0 else result


cdef int _check(Crew *c) noexcept nogil:
    """Refuse memory that would lead this process astray: -EPROTO, with a line of the log."""
    cdef const char *damage = find_damage(c)
    return clear_unused(c.volume.tables) if damage == NULL else _refuse(c, damage)


cdef int _check_requests(Crew *c) noexcept nogil:
    """Refuse a request that is longer than its place."""
    cdef int index
    for index in range(c.top):
        if _request(c.slots[index]).len > <uint32_t>(REQUEST_ROOM - REQUEST_AT):
            return _refuse(c, b"a request")
    return 0


cdef int _refuse(Crew *c, const char *damage) noexcept nogil:
    report(c.volume, REPORT_DAMAGE, 0, damage)
    return -EPROTO


cdef void _pin_removed(Tables *t, Journal *j) noexcept nogil:
    """Pin a file that may have lost its name; otherwise its descriptor counts as lost."""
    if j.removed_fd > 0 and j.removed_place < t.header.places:
        pin_fd(t, j.removed_fd, j.removed_place)
    note_removal(j, 0, 0)


cdef int _note_lost(Volume *v, const int *kept, int kept_count, Lost **lost) noexcept nogil:
    """Note the descriptors to close; 0 or -ENOMEM."""
    cdef int *fds = NULL
    cdef int at
    cdef int noted = 0
    cdef int count = find_lost(v, kept, kept_count, &fds)
    lost[0] = <Lost *>malloc((max(count, 0) + 1) * sizeof(Lost))
    if lost[0] == NULL or count < 0:
        free(fds)
        free(lost[0])
        lost[0] = NULL
        return -ENOMEM
    for at in range(count):
        noted += _identify(fds[at], &lost[0][noted])
    lost[0][noted].fd = -1
    free(fds)
    return _end_locks(lost[0], noted) if noted and v.locks_used else 0


cdef int _end_locks(const Lost *lost, int count) noexcept nogil:
    """End the locks of lost descriptors; 0 or -ENOMEM.

    An owner's former description would be in the way of the owner's own request. But a server may
    not answer: after LONGEST_MS, or without a thread, the locks stay until they are closed.
    """
    cdef Ending *ending = <Ending *>malloc(sizeof(Ending) + (count + 1) * sizeof(Lost))
    cdef int _ms
    if ending == NULL:
        return -ENOMEM
    ending.state = BEGUN
    memcpy(ending + 1, lost, (count + 1) * sizeof(Lost))
    if start_thread(_clear, ending) < 0:
        free(ending)
        return 0
    for _ms in range(LONGEST_MS):
        if load32(&ending.state, ACQUIRE) == DONE:
            break
        _sleep()
    _leave(ending)
    return 0


cdef void *_clear(void *argument) noexcept nogil:
    """End the locks of descriptors, until the other thread leaves: it frees their numbers."""
    cdef Ending *ending = <Ending *>argument
    cdef const Lost *one = <const Lost *>(ending + 1)
    while one.fd >= 0 and load32(&ending.state, ACQUIRE) == BEGUN:
        clear_locks(one.fd)
        one += 1
    _leave(ending)
    return NULL


cdef void _sleep() noexcept nogil:
    cdef timespec time
    time.tv_sec = 0
    time.tv_nsec = 1000000  # 1 ms
    nanosleep(&time, NULL)


cdef void _leave(Ending *ending) noexcept nogil:
    """Free the memory that two threads share, if the other one has left it."""
    if add32(&ending.state, 1, SEQ_CST) == DONE:
        free(ending)


cdef bint _identify(int fd, Lost *one) noexcept nogil:
    """Fill in a descriptor and its file, without asking a server; false: it is not open.

    If its file system has only an error for an answer, the file is known by zeros.
    """
    cdef struct_statx found
    if statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &found) < 0:
        if errno == EBADF:
            return False
        memset(&found, 0, sizeof(found))
    one.fd = fd
    one.device = makedev(found.stx_dev_major, found.stx_dev_minor)
    one.ino = found.stx_ino
    return True


cdef void _close_ids(Crew *c) noexcept nogil:
    """Close the ids of FUSE passthrough that requests in hand have opened or taken away."""
    cdef int32_t ids[MAX_SLOTS]
    cdef int32_t above = -1
    cdef int32_t backing
    cdef int index
    cdef int count = 0
    for index in range(c.top):
        backing = _journal(c.slots[index]).backing if _is_noted(c.slots[index]) else 0
        if backing > 0:
            ids[count] = backing
            count += 1
        elif backing < 0:
            above = min(above, -1 - backing) if above >= 0 else -1 - backing
    close_ids(c.volume, ids, count, above)


cdef void close_lost(Lost **lost) noexcept nogil:
    """Have a thread close what nothing accounts for, once.

    The server of a network file system may not answer: then close(2) hangs, and nothing else may.
    Without a thread the descriptors stay, and the next worker finds them.
    """
    cdef Lost *taken = lost[0]
    lost[0] = NULL
    if taken != NULL and (taken.fd < 0 or start_thread(_close, taken) < 0):
        free(taken)


cdef void *_close(void *argument) noexcept nogil:
    """Close descriptors, and free the array of them.

    A number that leads elsewhere now stays open. It was that of another process, as of a second
    fresh worker, which opens a descriptor of itself and then ends (standby.py).
    """
    cdef Lost *one = <Lost *>argument
    cdef Lost now
    while one.fd >= 0:
        if _identify(one.fd, &now) and now.device == one.device and now.ino == one.ino:
            close(one.fd)
        one += 1
    free(argument)
    return NULL

"""A thread in service: reads a request, has it served, writes the reply, and begins again.

The functions that handlers call before they block are here, too. A handler that is about to wait
for a disk calls `about_to_block` first, which adds a thread at once. When the call has returned,
the two threads do not alternate: the first that finds the other one idle leaves.

A few threads that leave are parked until the pool is idle. Waking a parked thread costs a fraction
of starting one.

If a thread cannot be prepared, the others serve without it. If it was to resume a request, the
worker ends, and the next one finds the request.

The threads are no threads of Python: they take the interpreter's lock only in rare.pyx.
"""

from libc.stdint cimport uint32_t

from passthrough.core.abi cimport FUSE_SETLK, FUSE_SETLKW
from passthrough.core.crew cimport (
    DEVICE, DISMISSED, MAX_PARKED, PARKED, READING, SERVING, Crew, Slot, add_thread, another_reads,
    leave, processors, pthread_cond_wait, resume, wake,
)
from passthrough.core.crash cimport CRASH_STACK, begin_thread
from passthrough.core.device cimport give_pages_back, prepare_pages, receive, send
from passthrough.core.entries cimport leaves_pages
from passthrough.core.identity cimport identity_thread, is_itself
from passthrough.core.journal cimport end_request
from passthrough.core.layout cimport ACQUIRE, RELAXED, RELEASE, SEQ_CST, add32, load32, store32
from passthrough.core.libc cimport EAGAIN, timespec
from passthrough.core.locks cimport waiting
from passthrough.core.loop cimport serve
from passthrough.core.resumed cimport serve_again
from passthrough.core.slots cimport pthread_mutex_lock, pthread_mutex_unlock
from passthrough.core.state cimport Thread, is_stopped

cdef extern from "<time.h>" nogil:
    int nanosleep(const timespec *time, timespec *left)

cdef enum:
    READERS = 2  # while nothing hangs, on more than one processor
    WAIT_NS = 1000000
    LONGEST_WAITS = 20
    MOST_VAIN = 3  # as many waits as one request for a lock makes (locks.pyx)


cdef int start_service(Crew *c, bint alone) noexcept nogil:
    """Start the readers: 0, or -errno (EAGAIN: there is no thread to be had).

    Requests come by /dev/fuse `alone`, or nearly all come over io_uring: then one reader is enough.
    If only the first of two can be started, it serves without the second.
    """
    cdef int _reader, result
    c.readers = min(READERS, processors()) if alone else 1
    c.run = _run
    c.volume.crew = c
    c.volume.block_hook = _about_to_block
    c.volume.wait_hook = _may_wait
    c.volume.finish_hook = _let_others_finish
    result = resume(c)
    if result < 0:
        return result
    for _reader in range(c.readers):
        if not add_thread(c, True):
            break
    pthread_mutex_lock(&c.mutex)
    c.target = min(c.target, c.readers)
    if c.size == 0 and not c.ended:  # a connection that ends ends its threads, too
        result = -EAGAIN
    pthread_mutex_unlock(&c.mutex)
    return result


cdef void *_run(void *argument) noexcept nogil:
    cdef Slot *slot = <Slot *>argument
    cdef Crew *c = slot.crew
    cdef char for_crashes[CRASH_STACK]
    cdef int result
    begin_thread(&slot.thread, for_crashes)
    result = identity_thread(&slot.thread)
    cdef bint unprepared = result < 0
    if not unprepared:
        result = _work(c, slot)
    pthread_mutex_lock(&c.mutex)
    if unprepared and c.size > 1 and not slot.resumes:
        result = 1  # the other threads serve without this one
    if result <= 0 and not is_stopped(c.volume):
        c.error = -result
        store32(&c.ended, 1, RELEASE)
        wake(c)
    leave(c, slot)
    pthread_mutex_unlock(&c.mutex)
    return NULL


cdef int _work(Crew *c, Slot *slot) noexcept nogil:
    """Serve requests; return 1 if the thread leaves, 0 at the end, -errno if it is broken."""
    cdef Thread *t = &slot.thread
    cdef int received
    if slot.resumes:
        slot.resumes = False
        prepare_pages(&slot.buffers)
        _reply(slot, serve_again(t, &slot.buffers))
        add32(&c.resuming, -1, RELEASE)
        if _leaves(c, slot):
            return 1
    while True:
        prepare_pages(&slot.buffers)
        received = receive(t, &slot.buffers)
        if received <= 0:
            return received
        # Stored before the loads: others store `idle` or `stopped`, and then load the state.
        store32(&slot.state, SERVING, SEQ_CST)
        if load32(&c.idle, SEQ_CST):
            resume_sampling(c)
        if is_stopped(c.volume):
            return 1
        _reply(slot, serve(t, <uint32_t>received))
        if _leaves(c, slot):
            return 1


cdef inline void _reply(Slot *slot, uint32_t length) noexcept nogil:
    """End a request, whose reply has so many bytes; 0: it has none."""
    cdef Thread *t = &slot.thread
    if length:
        send(t, length)
        return
    end_request(t.journal)
    if leaves_pages(t.request):
        give_pages_back(&slot.buffers)


cdef inline bint _leaves(Crew *c, Slot *slot) noexcept nogil:
    """Return whether a thread without a request ends; otherwise it reads."""
    if load32(&c.size, RELAXED) > load32(&c.target, RELAXED) and _park_or_end(c, slot):
        return True
    store32(&slot.state, READING, RELEASE)
    return False


cdef void resume_sampling(Crew *c) noexcept nogil:
    pthread_mutex_lock(&c.mutex)
    if c.idle:
        store32(&c.idle, 0, RELEASE)
        wake(c)
    pthread_mutex_unlock(&c.mutex)


cdef bint _park_or_end(Crew *c, Slot *slot) noexcept nogil:
    """Park a thread that is surplus; return whether it is to end."""
    cdef bint ends = False
    pthread_mutex_lock(&c.mutex)
    if is_stopped(c.volume):
        ends = True
    elif c.size - <int>waiting(c.volume) > c.target and another_reads(c, slot):
        if c.parked >= MAX_PARKED:
            ends = True
        else:
            c.size -= 1
            c.parked += 1
            store32(&slot.state, PARKED, RELEASE)
            while slot.state == PARKED:
                pthread_cond_wait(&slot.wake_up, &c.mutex)
            ends = slot.state == DISMISSED
            c.size += ends  # `leave` takes it off again
    pthread_mutex_unlock(&c.mutex)
    return ends


cdef void _about_to_block(Thread *t) noexcept nogil:
    """Add a thread if none reads.

    Not to a queue of io_uring: no thread leaves it again, and a second one waits from the start.
    Nor inside of a guard: the new thread would inherit the ids and capabilities of a caller.
    """
    cdef Slot *slot = <Slot *>t.of_crew
    if slot.crew.queue == DEVICE and is_itself(t) and not another_reads(slot.crew, slot):
        add_thread(slot.crew, False)


cdef bint _may_wait(Thread *t) noexcept nogil:
    """Return whether another thread serves while this one waits; try to add one.

    If no thread can be added, the last one must not wait for a lock: it has to serve the unlock.
    Once the pool is stopped, a request may wait for the successor, which serves it again.
    """
    cdef Slot *slot = <Slot *>t.of_crew
    if another_serves(slot.crew, slot):
        return True
    # The new thread may have a request in hand by now; if that is to wait, too, it asks for itself.
    if add_thread(slot.crew, False) or another_serves(slot.crew, slot):
        return True
    return is_stopped(t.volume)


cdef bint another_serves(Crew *c, const Slot *slot) noexcept nogil:
    """Return whether a thread other than this one can serve an unlock.

    The caller's own request is visible in its slot. So if several threads ask at the same time, the
    last one sees the requests of all the others.
    """
    cdef const Slot *other
    cdef uint32_t opcode
    cdef bint found = False
    cdef int index
    pthread_mutex_lock(&c.mutex)
    for index in range(c.top):
        other = c.slots[index]
        if other == slot:
            continue
        if load32(&other.state, ACQUIRE) == READING:
            found = True
        elif load32(&other.state, ACQUIRE) == SERVING:
            # It may wait for a lock, or for pages that are being read (locks.pyx).
            opcode = other.thread.request.opcode
            found = found or not (opcode == FUSE_SETLK or opcode == FUSE_SETLKW)
    pthread_mutex_unlock(&c.mutex)
    return found


cdef bint _let_others_finish(Thread *t) noexcept nogil:
    """Wait until other threads have served what they took before this request, or 20 ms.

    False: there are no others, so that all earlier requests are served. A request that has been
    waited for in vain three times counts as hung, and delays no further lock.
    """
    cdef Slot *slot = <Slot *>t.of_crew
    cdef Crew *first = slot.crew.device
    cdef int _tries
    if first.next == NULL and load32(&first.size, ACQUIRE) == 1:
        return False
    _about_to_block(t)
    _sleep()  # a thread that has just taken a request may not have marked its slot yet
    _note(first)
    for _tries in range(LONGEST_WAITS):
        if not _serves_what_was_noted(first, slot, False):
            return True
        _sleep()
    _serves_what_was_noted(first, slot, True)
    return True


cdef void _note(Crew *c) noexcept nogil:
    cdef int index
    while c != NULL:
        for index in range(load32(&c.top, ACQUIRE)):
            c.slots[index].noted = c.slots[index].thread.served
        c = c.next


cdef bint _serves_what_was_noted(Crew *c, const Slot *but, bint in_vain) noexcept nogil:
    """Return whether a thread, not one that waits for a lock, still serves a request of before.

    Threads that hang do not count; `in_vain`: count one more wait for the others.
    """
    cdef Slot *slot
    cdef bint found = False
    cdef int index
    while c != NULL and (in_vain or not found):
        pthread_mutex_lock(&c.mutex)  # no thread may begin in a slot that is looked at
        for index in range(c.top):
            slot = c.slots[index]
            if slot == but or load32(&slot.state, ACQUIRE) != SERVING:
                continue
            if slot.thread.request.opcode == FUSE_SETLKW or slot.thread.served != slot.noted:
                continue
            if slot.vain_for != slot.noted:
                slot.vain = 0
            if slot.vain < MOST_VAIN:
                slot.vain_for = slot.noted
                slot.vain += in_vain
                found = True
        pthread_mutex_unlock(&c.mutex)
        c = c.next
    return found


cdef void _sleep() noexcept nogil:
    cdef timespec time
    time.tv_sec = 0
    time.tv_nsec = WAIT_NS
    nanosleep(&time, NULL)

"""Waiting for a lock: a system call that may last for ever, until its caller is interrupted.

The thread that waits is inside the kernel, and only a signal ends its call. A signal that comes
just before the call begins is lost. So SIGURG is sent until the thread has left the call. It is
sent only while the thread is known to be on its way in or out, never to its later calls. After 1 s
no more is sent: the host's call cannot be interrupted where it is, as on an NFS server that does
not answer. The signal stays pending inside of the call, which it ends as soon as it can.

A thread inside the host's call keeps its place in the host's queue and costs nothing, which polling
would not. At most 1,024 threads wait, and the next request gets ENOLCK. They do not count as
threads that serve.

INTERRUPT may be served before the request that it names, since two threads may take the two. Or the
worker dies, and the next worker serves the request again, but not the INTERRUPT, which had been
served. So the numbers of the last 256 requests that were interrupted are remembered, also by the
next worker. Most of them never wait. No number comes twice.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from passthrough.core.layout cimport RELEASE, store32, store64
from passthrough.core.libc cimport (
    CLOCK_MONOTONIC,
    EINTR,
    ENOLCK,
    F_OFD_SETLKW,
    clock_gettime,
    errno,
    fcntl,
    flock,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    timespec,
)
from passthrough.core.lock_records cimport MOST_NAMED

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_condattr_init(pthread_condattr_t *attributes)
    int pthread_condattr_setclock(pthread_condattr_t *attributes, int clock)
    int pthread_condattr_destroy(pthread_condattr_t *attributes)
    int pthread_cond_init(pthread_cond_t *condition, const pthread_condattr_t *attributes)
    int pthread_cond_destroy(pthread_cond_t *condition)
    int pthread_cond_broadcast(pthread_cond_t *condition)
    int pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const timespec *)
    pthread_t pthread_self()

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    struct struct_sigaction "sigaction":
        void (*sa_handler)(int) noexcept nogil
        int sa_flags
    enum:
        SIGURG, SIG_UNBLOCK
    int sigaction(int number, const struct_sigaction *action, struct_sigaction *before)
    int sigemptyset(sigset_t *signals)
    int sigaddset(sigset_t *signals, int number)
    int pthread_sigmask(int how, const sigset_t *signals, sigset_t *before)
    int pthread_kill(pthread_t thread, int number)

cdef enum:
    AGAIN_NS = 2 * 1000 * 1000
    SECOND_NS = 1000 * 1000 * 1000
    MOST_SIGNALS = 500  # 1 s


cdef int begin_waits(Waits *waits, Named *named) noexcept nogil:
    """Begin without waits in memory that is 0; have SIGURG interrupt system calls.

    The numbers of requests that are interrupted go into `named`.

    The kernel ignores SIGURG without a handler, so one signal too many does no harm.
    """
    cdef struct_sigaction action
    pthread_mutex_init(&waits.mutex, NULL)
    waits.most = MOST_WAITS
    waits.named = named
    memset(&action, 0, sizeof(action))
    action.sa_handler = _nothing  # no SA_RESTART: the call ends
    if sigaction(SIGURG, &action, NULL) < 0:
        return -errno
    return 0


cdef void _nothing(int number) noexcept nogil:
    pass


cdef void end_waits(Waits *waits) noexcept nogil:
    """Give the memory back; no thread waits any more."""
    cdef uint32_t at
    for at in range(waits.made):
        pthread_cond_destroy(&waits.waits[at].left)
        pthread_mutex_destroy(&waits.waits[at].mutex)
        free(waits.waits[at])
    pthread_mutex_destroy(&waits.mutex)


cdef int enter_wait(Waits *waits, uint64_t number, Wait **out) noexcept nogil:
    """Let the request `number` wait in this thread until `leave_wait`.

    Return -EINTR if the request was interrupted before, -ENOLCK if too many wait.
    """
    cdef Wait *wait
    cdef int result = 0
    pthread_mutex_lock(&waits.mutex)
    if _was_named(waits, number):
        result = -EINTR
    elif waits.count >= waits.most or not _has_spare(waits):
        result = -ENOLCK
    else:
        wait = waits.waits[waits.count]
        pthread_mutex_lock(&wait.mutex)
        wait.number = number
        wait.interrupted = False
        pthread_mutex_unlock(&wait.mutex)
        waits.numbers[waits.count] = number
        _set_count(waits, waits.count + 1)
        out[0] = wait
    pthread_mutex_unlock(&waits.mutex)
    return result


cdef void leave_wait(Waits *waits, Wait *wait) noexcept nogil:
    """End what `enter_wait` has begun."""
    cdef uint32_t at = 0
    pthread_mutex_lock(&waits.mutex)
    while waits.waits[at] != wait:
        at += 1
    _set_count(waits, waits.count - 1)
    waits.numbers[at] = waits.numbers[waits.count]
    waits.waits[at] = waits.waits[waits.count]
    waits.waits[waits.count] = wait
    pthread_mutex_lock(&wait.mutex)
    wait.number = 0
    pthread_mutex_unlock(&wait.mutex)
    pthread_mutex_unlock(&waits.mutex)


cdef inline void _set_count(Waits *waits, uint32_t count) noexcept nogil:
    """Set the count, which is also read without the mutex."""
    store32(<int32_t *>&waits.count, <int32_t>count, RELEASE)


cdef bint _has_spare(Waits *waits) noexcept nogil:
    """Return whether there is memory for one more wait."""
    cdef Wait *wait
    cdef pthread_condattr_t attributes
    if waits.count < waits.made:
        return True
    wait = <Wait *>calloc(1, sizeof(Wait))
    if wait == NULL:
        return False
    pthread_mutex_init(&wait.mutex, NULL)
    pthread_condattr_init(&attributes)
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    pthread_cond_init(&wait.left, &attributes)
    pthread_condattr_destroy(&attributes)
    waits.waits[waits.made] = wait
    waits.made += 1
    return True


cdef bint _was_named(const Waits *waits, uint64_t number) noexcept nogil:
    """Return whether INTERRUPT has named a request."""
    cdef uint32_t at
    for at in range(<uint32_t>MOST_NAMED):
        if waits.named.numbers[at] == number:
            return True
    return False


cdef void _keep_named(Waits *waits, uint64_t number) noexcept nogil:
    cdef Named *named = waits.named
    if not _was_named(waits, number):
        store64(&named.numbers[named.next % MOST_NAMED], number, RELEASE)
        store32(<int32_t *>&named.next, <int32_t>(named.next + 1), RELEASE)


# The calls


cdef int wait_for_host(Wait *wait, int fd, struct_flock *lock, int operation) noexcept nogil:
    """Set a lock of the open file description, F_OFD_SETLKW, or by flock(2) if `lock` is NULL.

    A signal for the process may come to any thread; then the call begins anew. Return -EINTR if
    `interrupt` has ended the wait.
    """
    cdef int result
    _go_in(wait)
    while True:
        if wait.interrupted:
            result = -EINTR
            break
        pthread_mutex_unlock(&wait.mutex)
        if lock != NULL:
            result = fcntl(fd, F_OFD_SETLKW, lock)
        else:
            result = flock(fd, operation)
        if result < 0:
            result = -errno
        pthread_mutex_lock(&wait.mutex)
        if result != -EINTR:
            break
    _come_out(wait)
    return result


cdef void _go_in(Wait *wait) noexcept nogil:
    """Let signals come, and hold the mutex; the calling thread may have blocked all signals."""
    cdef sigset_t signals
    sigemptyset(&signals)
    sigaddset(&signals, SIGURG)
    pthread_sigmask(SIG_UNBLOCK, &signals, NULL)
    pthread_mutex_lock(&wait.mutex)
    wait.thread = pthread_self()
    wait.inside = True


cdef void _come_out(Wait *wait) noexcept nogil:
    wait.inside = False
    pthread_cond_broadcast(&wait.left)
    pthread_mutex_unlock(&wait.mutex)


cdef bint interrupt(Waits *waits, uint64_t number) noexcept nogil:
    """End the wait of the request `number`, also a wait that is about to begin.

    Return when the thread has left the call, or will not enter it any more; false: after 1 s it is
    still inside.
    """
    cdef uint32_t at = 0
    cdef int left = MOST_SIGNALS
    cdef bint inside
    cdef Wait *wait
    cdef timespec until
    pthread_mutex_lock(&waits.mutex)
    _keep_named(waits, number)
    while at < waits.count and waits.numbers[at] != number:
        at += 1
    if at == waits.count:
        pthread_mutex_unlock(&waits.mutex)
        return True
    wait = waits.waits[at]
    pthread_mutex_lock(&wait.mutex)
    pthread_mutex_unlock(&waits.mutex)
    wait.interrupted = True
    while wait.number == number and wait.inside and left:
        left -= 1
        pthread_kill(wait.thread, SIGURG)
        clock_gettime(CLOCK_MONOTONIC, &until)
        until.tv_nsec += AGAIN_NS
        if until.tv_nsec >= SECOND_NS:
            until.tv_sec += 1
            until.tv_nsec -= SECOND_NS
        pthread_cond_timedwait(&wait.left, &wait.mutex, &until)
    inside = wait.number == number and wait.inside
    pthread_mutex_unlock(&wait.mutex)
    return not inside

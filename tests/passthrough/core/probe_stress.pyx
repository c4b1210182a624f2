"""Work on the tables without Python, in threads of its own; for sanitizers too."""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from passthrough.core.journal cimport Journal, begin_request
from passthrough.core.memory cimport adopt, detach, rebuild_hash, recover, trim
from passthrough.core.recent cimport recent_close, recent_open
from passthrough.core.state cimport Volume
from passthrough.core.sweep cimport sweep, until_sweep
from passthrough.core.tables cimport (
    ACQUIRE, FILES, NEEDS_HANDLE, RELEASE, TAKEN, FileHandle, Found, Gone, Granted, Inode, OpenFile,
    Released, Tables, descriptor, forget, grant, grant_handle, inode_of, load32, open_add, open_get,
    open_release, store32,
)

cdef extern from "<unistd.h>" nogil:
    int dup(int fd)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *, const void *, void *(*)(void *) noexcept nogil, void *)
    int pthread_join(pthread_t, void **)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int, timespec *)


def stress(int fd, int threads, uint64_t steps, uint64_t files=20000, uint64_t seed=1):
    """Have threads grant, forget, open and release; return the number of what was wrong, or 0.

    The owner of the tables in `fd` has to recover them afterwards.
    """
    cdef Tables *t = _attached(fd)
    cdef int wrong
    with nogil:
        wrong = _stress(t, threads, steps, files, seed)
    detach(t)
    return wrong


def measure(int fd, uint64_t count):
    """Return the nanoseconds of one grant of a new file, of a known one, and of one forget."""
    cdef Tables *t = _attached(fd)
    cdef double times[3]
    _measure(t, count, times)
    _measure(t, count, times)
    detach(t)
    return times[0], times[1], times[2]


cdef Tables *_attached(int fd) except NULL:
    cdef int error = 0
    cdef Tables *t = adopt(dup(fd), &error)
    if t == NULL:
        raise OSError(error, "tables")
    recover(t)
    return t


cdef enum:
    HELD = 8192
    OPENED = 256


cdef struct Task:
    Tables *t
    uint64_t steps
    uint64_t files
    uint64_t random
    uint64_t taken  # sums of descriptors
    uint64_t returned
    int wrong  # 0, or the number of the check that failed
    uint32_t held_count
    uint32_t opened_count
    uint64_t held[HELD]
    uint64_t opened[OPENED]
    Journal journal


cdef uint64_t _draw(Task *task) noexcept nogil:
    task.random ^= task.random << 13
    task.random ^= task.random >> 7
    task.random ^= task.random << 17
    return task.random >> 8


cdef void _gone(Task *task, const Gone *gone) noexcept nogil:
    if gone.gone and gone.fd >= 0:
        task.returned += <uint64_t>gone.fd


cdef void _grant(Task *task) noexcept nogil:
    cdef Found found
    cdef Granted out
    cdef FileHandle handle
    cdef Inode *inode
    cdef int result
    if task.held_count == HELD:
        return
    memset(&found, 0, sizeof(found))
    found.ino = 100 + _draw(task) % task.files
    found.device = 1 + _draw(task) % 16 // 15
    found.fd = <int32_t>(_draw(task) & 0x3FFFFFFF)
    result = grant(task.t, &task.journal, &found, &out)
    if result == NEEDS_HANDLE:
        memset(&handle, 0, sizeof(handle))
        handle.handle_bytes = 8
        handle.f_handle[0] = _draw(task) % 64 == 0  # another file has got the number
        result = grant_handle(task.t, &task.journal, &found, &handle, &out)
    if result < 0 or result == NEEDS_HANDLE:
        task.wrong = 1
        return
    if result == TAKEN:
        task.taken += <uint64_t>found.fd
    task.held[task.held_count] = out.nodeid
    task.held_count += 1
    inode = inode_of(task.t, out.nodeid)
    if inode == NULL or inode.ino != found.ino or inode.shown_ino != out.shown_ino:
        task.wrong = 2
    elif result == TAKEN and descriptor(inode) != found.fd:
        task.wrong = 3


cdef void _forget(Task *task) noexcept nogil:
    cdef uint32_t at
    cdef Gone gone
    if task.held_count:
        at = <uint32_t>(_draw(task) % task.held_count)
        if inode_of(task.t, task.held[at]) == NULL:
            task.wrong = 4
        forget(task.t, &task.journal, task.held[at], 1, &gone)
        _gone(task, &gone)
        task.held_count -= 1
        task.held[at] = task.held[task.held_count]


cdef void _open(Task *task) noexcept nogil:
    cdef OpenFile made
    cdef OpenFile *file
    cdef uint64_t nodeid, fh
    cdef int32_t in_force
    if not task.held_count or task.opened_count == OPENED:
        return
    memset(&made, 0, sizeof(made))
    made.fd = <int32_t>(_draw(task) & 0x3FFFFFFF)
    nodeid = task.held[_draw(task) % task.held_count]
    if open_add(task.t, &task.journal, FILES, nodeid, &made, 0, &fh, &in_force) < 0:
        task.wrong = 5
        return
    task.taken += <uint64_t>made.fd
    task.opened[task.opened_count] = fh
    task.opened_count += 1
    file = open_get(task.t, FILES, fh)
    if file == NULL or file.fd != made.fd or file.nodeid != nodeid:
        task.wrong = 6


cdef void _release(Task *task) noexcept nogil:
    cdef uint32_t at
    cdef Released out
    if task.opened_count:
        at = <uint32_t>(_draw(task) % task.opened_count)
        if open_release(task.t, &task.journal, FILES, task.opened[at], &out) < 0:
            task.wrong = 7
            return
        task.returned += <uint64_t>out.fd
        _gone(task, &out.gone)
        task.opened_count -= 1
        task.opened[at] = task.opened[task.opened_count]


cdef void *_run(void *argument) noexcept nogil:
    """Grow and shrink in turn; give everything back in the end."""
    cdef Task *task = <Task *>argument
    cdef uint64_t step, choice
    for step in range(task.steps):
        choice = _draw(task) % 16
        begin_request(&task.journal, step)
        if choice < 2:
            _open(task)
        elif choice < 4:
            _release(task)
        elif (choice < 12) == (step // 20000 % 2 == 0):
            _grant(task)
        else:
            _forget(task)
        if step % 5000 == 0:
            trim(task.t)
        if step % 20011 == 0:
            rebuild_hash(task.t)
    while task.held_count and task.wrong == 0:
        _forget(task)
    while task.opened_count and task.wrong == 0:
        _release(task)
    return NULL


cdef struct Sweeping:
    Volume v
    int32_t ended


cdef void *_sweep(void *argument) noexcept nogil:
    """Look at all inodes again and again, as the main thread does; no kernel is told."""
    cdef Sweeping *sweeping = <Sweeping *>argument
    while not load32(&sweeping.ended, ACQUIRE):
        until_sweep(&sweeping.v)
        sweep(&sweeping.v)
    return NULL


cdef int _stress(
    Tables *t, int count, uint64_t steps, uint64_t files, uint64_t seed
) noexcept nogil:
    cdef Task *tasks = <Task *>calloc(<size_t>count, sizeof(Task))
    cdef pthread_t *threads = <pthread_t *>calloc(<size_t>count, sizeof(pthread_t))
    cdef Sweeping *sweeping = <Sweeping *>calloc(1, sizeof(Sweeping))
    cdef pthread_t sweeper
    cdef uint64_t balance = 0
    cdef int wrong = 0
    cdef int number
    sweeping.v.tables = t
    sweeping.v.device_fd = -1
    recent_open(&sweeping.v)
    pthread_create(&sweeper, NULL, _sweep, sweeping)
    for number in range(count):
        tasks[number].t = t
        tasks[number].steps = steps
        tasks[number].files = files
        tasks[number].random = seed * 1000003 + <uint64_t>number + 1
        pthread_create(&threads[number], NULL, _run, &tasks[number])
    for number in range(count):
        pthread_join(threads[number], NULL)
        balance += tasks[number].taken - tasks[number].returned
        wrong = wrong or tasks[number].wrong
    store32(&sweeping.ended, 1, RELEASE)
    pthread_join(sweeper, NULL)
    recent_close(&sweeping.v)
    free(sweeping)
    free(tasks)
    free(threads)
    if not wrong and balance:
        wrong = 8
    return wrong


cdef double _now() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1e9 + now.tv_nsec


cdef void _measure(Tables *t, uint64_t count, double *times) noexcept nogil:
    cdef Found found
    cdef Granted out
    cdef Gone gone
    cdef uint64_t *nodes = <uint64_t *>calloc(count, sizeof(uint64_t))
    cdef uint64_t number
    cdef double start
    cdef int turn
    memset(&found, 0, sizeof(found))
    found.device = 1
    found.fd = 5
    for turn in range(2):
        start = _now()
        for number in range(count):
            found.ino = 1000 + number
            grant(t, NULL, &found, &out)
            nodes[number] = out.nodeid
        times[turn] = (_now() - start) / count
    for number in range(count):
        forget(t, NULL, nodes[number], 1, &gone)
    start = _now()
    for number in range(count):
        forget(t, NULL, nodes[number], 1, &gone)
    times[2] = (_now() - start) / count
    free(nodes)

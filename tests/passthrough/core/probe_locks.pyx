"""Locks and waits of one volume for tests, without a session or threads of its own."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from passthrough.core.abi cimport (
    FUSE_GETLK, FUSE_SETLK, FUSE_SETLKW, fuse_in_header, fuse_interrupt_in, fuse_lk_in,
    fuse_lk_out,
)
from passthrough.core.descriptions cimport clear_locks
from passthrough.core.held cimport (
    Held, Lock, begin_held, covers, end_held, hinders, holds, note, reserve, writes,
)
from passthrough.core.journal cimport Journal
from passthrough.core.layout cimport FILES, Found, Granted, Limits, OpenFile, Released, open_get
from passthrough.core.libc cimport (
    F_OFD_GETLK, F_WRLCK, S_IFREG, close, fcntl, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock, struct_flock,
)
from passthrough.core.lock_records cimport (
    MOST_NAMED, Kept, Record, Records, Shared, kept_of, ranges_of,
)
from passthrough.core.locks cimport (
    Locks, do_getlk, do_interrupt, do_setlk, do_setlkw, file_released, locks_close, locks_open,
    locks_recover, next_record, owner_closed, waiting,
)
from passthrough.core.lock_table cimport REMEMBERED, LockTable, find_owned
from passthrough.core.memory cimport create, detach
from passthrough.core.state cimport Thread, Volume
from passthrough.core.tables cimport grant, open_add, open_release
from passthrough.core.waits cimport (
    MOST_WAITS, Wait, begin_waits, enter_wait, leave_wait, pthread_t,
)

STATES = REMEMBERED
NAMED = MOST_NAMED
WAITS = MOST_WAITS


cdef extern from "<pthread.h>" nogil:
    pthread_t pthread_self()

cdef extern from "<sys/ptrace.h>" nogil:
    int PTRACE_SINGLESTEP
    long ptrace(int request, int pid, void *address, void *data)

cdef extern from "<signal.h>" nogil:
    int SIGSTOP
    int kill(int pid, int number)

cdef extern from "<unistd.h>" nogil:
    int getpid()

cdef extern from "<sys/wait.h>" nogil:
    int waitpid(int pid, int *status, int options)
    bint WIFSTOPPED(int status)

cdef enum:
    WATCHED_RECORDS = 2
    LAST = 100

cdef extern from * nogil:
    int RELAXED "__ATOMIC_RELAXED"
    int add "__atomic_add_fetch"(int *place, int more, int order)


# The answers of the hooks of a pool of threads, and the number of calls.
cdef struct Pool:
    bint waits
    int finishes
    int blocked
    int asked


cdef void _block(Thread *t) noexcept nogil:
    add(&(<Pool *>t.of_crew).blocked, 1, RELAXED)


cdef bint _may_wait(Thread *t) noexcept nogil:
    return (<Pool *>t.of_crew).waits


cdef bint _finish(Thread *t) noexcept nogil:
    cdef Pool *pool = <Pool *>t.of_crew
    add(&pool.asked, 1, RELAXED)
    return add(&pool.finishes, -1, RELAXED) >= 0


# All that a worker may have changed: the first records, and locks on the host.
cdef struct Seen:
    Shared shared
    Record records[WATCHED_RECORDS]
    struct_flock first
    struct_flock last


cdef void _ask(int fd, int64_t start, struct_flock *out) noexcept nogil:
    memset(out, 0, sizeof(struct_flock))
    out.l_type = F_WRLCK
    out.l_start = start
    fcntl(fd, F_OFD_GETLK, out)


cdef class Locking:
    """A volume with no more than open files and locks."""

    cdef Volume *v
    cdef Pool pool
    cdef public bint traced  # stop before each request
    cdef public bint again  # requests are served again
    cdef readonly list reports

    def __init__(self, int device_fd=-1, *, bint waits=True, bint writeback=False):
        cdef Limits limits
        cdef Found root
        cdef int error = 0
        cdef bytes links = b"/proc/self/fd/"
        memset(&limits, 0, sizeof(limits))
        memset(&root, 0, sizeof(root))
        limits.inodes = 1 << 12
        limits.places = 1 << 9
        limits.opens[0] = limits.opens[1] = 1 << 12
        limits.budget = 1 << 30
        root.ino = root.device = 1
        root.fd = -1
        self.v = <Volume *>calloc(1, sizeof(Volume))
        self.v.tables = create(&limits, 0, -1, &root, &error)
        if self.v.tables == NULL:
            raise OSError(error, "tables")
        memcpy(self.v.links, <const char *>links, len(links))
        self.v.device_fd = device_fd
        self.v.locks_fd = -1
        self.v.options.writeback = writeback
        self.v.block_hook = _block
        self.v.wait_hook = _may_wait
        self.v.finish_hook = _finish
        self.reports = []
        self.v.python = <void *>self
        self.pool.waits = waits
        locks_open(self.v)

    def close(self):
        """Drop all locks."""
        locks_close(self.v)

    def free(self):
        """Give the memory back, which no thread uses any more."""
        locks_close(self.v)
        detach(self.v.tables)
        free(self.v)
        self.v = NULL

    def open(self, uint64_t ino, int fd):
        """Open a file of the number `ino` by `fd`, which then belongs to it; return nodeid, fh."""
        cdef Found found
        cdef Granted granted
        cdef OpenFile made
        cdef uint64_t fh
        cdef int32_t in_force
        memset(&found, 0, sizeof(found))
        memset(&made, 0, sizeof(made))
        found.ino = ino
        found.device = 1
        found.type = S_IFREG
        found.fd = 1 << 20  # none
        made.fd = fd
        made.twin = -1
        if grant(self.v.tables, NULL, &found, &granted) < 0:
            raise OSError("no inode")
        if open_add(self.v.tables, NULL, FILES, granted.nodeid, &made, 0, &fh, &in_force) < 0:
            raise OSError("no open file")
        return granted.nodeid, fh

    def release(self, uint64_t fh, *, bint unlock=False):
        """Close an open file."""
        cdef Thread t
        cdef Released out
        self._begin(&t)
        file_released(&t, open_get(self.v.tables, FILES, fh), unlock)
        open_release(self.v.tables, NULL, FILES, fh, &out)
        close(out.fd)

    def closed(self, uint64_t nodeid, uint64_t owner):
        """An owner has closed a descriptor."""
        cdef Thread t
        self._begin(&t)
        with nogil:
            owner_closed(&t, nodeid, owner)

    def ask(
        self, int opcode, uint64_t nodeid, uint64_t fh, uint64_t owner, uint32_t kind,
        uint64_t start, uint64_t end, uint32_t pid, uint32_t flags, uint64_t unique
    ):
        """Serve GETLK, SETLK or SETLKW; return -errno, 0, or the lock found."""
        cdef Thread t
        cdef fuse_in_header header
        cdef fuse_lk_in asked
        cdef fuse_lk_out answer
        cdef Journal journal
        cdef int result = 0
        self._begin(&t)
        memset(&journal, 0, sizeof(journal))
        t.journal = &journal
        memset(&header, 0, sizeof(header))
        header.opcode = <uint32_t>opcode
        header.nodeid = nodeid
        header.unique = unique
        asked.fh, asked.owner, asked.lk_flags, asked.padding = fh, owner, flags, 0
        asked.lk.start, asked.lk.end, asked.lk.type, asked.lk.pid = start, end, kind, pid
        t.request = &header
        t.out = <char *>&answer
        t.out_size = sizeof(answer)
        with nogil:
            if opcode == FUSE_GETLK:
                result = do_getlk(&t, &header, <const char *>&asked, sizeof(asked))
            elif opcode == FUSE_SETLK:
                result = do_setlk(&t, &header, <const char *>&asked, sizeof(asked))
            elif opcode == FUSE_SETLKW:
                result = do_setlkw(&t, &header, <const char *>&asked, sizeof(asked))
        if result > 0:
            return answer.lk.type, answer.lk.start, answer.lk.end, answer.lk.pid
        return result

    def interrupt(self, uint64_t unique):
        """Serve INTERRUPT."""
        cdef Thread t
        cdef fuse_in_header header
        cdef fuse_interrupt_in named
        self._begin(&t)
        memset(&header, 0, sizeof(header))
        named.unique = unique
        with nogil:
            do_interrupt(&t, &header, <const char *>&named, sizeof(named))

    def report(self, kind, number, name):
        """Keep what is reported once; name: of a file."""
        self.reports.append((kind, number))

    def hang(self, uint64_t unique, function):
        """Wait as the request `unique`, in a call that no signal ends; the call is `function`."""
        cdef Wait *wait = NULL
        if enter_wait(&(<Locks *>self.v.locks).waits, unique, &wait) < 0:
            raise OSError("no wait")
        pthread_mutex_lock(&wait.mutex)
        wait.thread = pthread_self()
        wait.inside = True
        pthread_mutex_unlock(&wait.mutex)
        function()
        pthread_mutex_lock(&wait.mutex)
        wait.inside = False
        pthread_mutex_unlock(&wait.mutex)
        leave_wait(&(<Locks *>self.v.locks).waits, wait)

    def waiting(self):
        """Return how many requests wait."""
        return waiting(self.v)

    def limit_waits(self, uint32_t most):
        """Let no more than `most` requests wait."""
        (<Locks *>self.v.locks).waits.most = most

    def named(self):
        """Return how many requests are remembered that INTERRUPT has named."""
        cdef int at
        cdef int count = 0
        for at in range(MOST_NAMED):
            count += self._table().records.shared.named.numbers[at] != 0
        return count

    def descriptions(self):
        """Return how many descriptions the table has."""
        return self._table().count if self.v.locks != NULL else 0

    def states(self):
        """Return of how many files the state is known."""
        return self._table().known

    def used(self):
        """Return whether there has been a lock of bytes."""
        return self.v.locks_used != 0

    def held(self, uint64_t nodeid, uint64_t owner):
        """Return the locks that are noted of an owner."""
        cdef LockTable *table = self._table()
        cdef list found = []
        pthread_mutex_lock(&table.mutex)
        owned = find_owned(table, nodeid, owner)
        if owned != NULL:
            found = _listed(&owned.held)
        pthread_mutex_unlock(&table.mutex)
        return found

    def let(self, *, bint waits, int finishes):
        """Set what the pool answers: whether threads may wait, and how often others finish."""
        self.pool.waits = waits
        self.pool.finishes = finishes
        self.pool.asked = self.pool.blocked = 0

    def asked(self):
        """Return how often a thread was about to block, and let others finish."""
        return self.pool.blocked, self.pool.asked

    def take_over(self):
        """Go on as the next worker does, which has the memory of records alone."""
        cdef Locks *locks = <Locks *>calloc(1, sizeof(Locks))
        locks.table.records = self._table().records
        pthread_mutex_init(&locks.table.mutex, NULL)
        begin_waits(&locks.waits, &locks.table.records.shared.named)
        self.v.locks = locks
        self.v.locks_used = 0
        if locks_recover(self.v) < 0:
            raise MemoryError

    def recorded(self):
        """Return the descriptors that locks are held by."""
        cdef uint32_t index = 0
        cdef const Record *record = next_record(self.v, &index)
        found = set()
        while record != NULL:
            found.add(record.described >> 1)
            record = next_record(self.v, &index)
        return found

    def clear(self, int fd):
        """Clear the locks of a descriptor that is lost."""
        return clear_locks(fd)

    def step(self, int pid, int watching, int changes):
        """Have a traced process go on until it has made so many changes; return how many it made.

        A change is one of the memory of records, without their areas, or of the first or the last
        lock that a descriptor meets. A process that has made fewer has ended.
        """
        cdef Records *records = &self._table().records
        cdef Seen seen[2]
        cdef int made = -1, status = 0
        with nogil:
            while waitpid(pid, &status, 0) == pid and WIFSTOPPED(status):
                memset(&seen[0], 0, sizeof(Seen))
                seen[0].shared = records.shared[0]
                memcpy(seen[0].records, records.at, sizeof(seen[0].records))
                _ask(watching, 0, &seen[0].first)
                _ask(watching, LAST, &seen[0].last)
                if made < 0 or memcmp(&seen[0], &seen[1], sizeof(Seen)):
                    seen[1] = seen[0]
                    made += 1
                    if made == changes:
                        break
                ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL)
        return made

    def records(self):
        """Return owner, descriptor, open files and locks of each record; with pid and `wrote`."""
        cdef Records *records = &self._table().records
        cdef const Record *record
        cdef const Kept *kept
        cdef uint32_t index, at
        found = []
        for index in range(records.shared.end):
            record = &records.at[index]
            if record.nodeid:
                kept = kept_of(records, record)
                locks = [
                    (ranges_of(kept)[at].kind, ranges_of(kept)[at].start, ranges_of(kept)[at].end)
                    for at in range(kept.count)
                ]
                found.append((
                    record.owner, record.described >> 1, bool(record.described & 1),
                    record.opened_count, locks, kept.pid, bool(kept.wrote),
                ))
        return found

    cdef LockTable *_table(self):
        return &(<Locks *>self.v.locks).table

    cdef void _begin(self, Thread *t):
        memset(t, 0, sizeof(t[0]))
        t.volume = self.v
        t.of_crew = &self.pool
        t.again = self.again
        if self.traced:
            kill(getpid(), SIGSTOP)


cdef list _listed(const Held *held):
    cdef uint32_t at
    return [
        (held.ranges[at].kind, held.ranges[at].start, held.ranges[at].end)
        for at in range(held.count)
    ]


cdef class Ranges:
    """The locks of one owner on one file."""

    cdef Held held

    def __cinit__(self):
        begin_held(&self.held)

    def __dealloc__(self):
        end_held(&self.held)

    def note(self, uint32_t kind, uint64_t start, uint64_t end):
        """Note a lock, and return all of them."""
        cdef Lock lock = Lock(start, end, kind, 0)
        if not reserve(&self.held, 2):
            raise MemoryError
        note(&self.held, &lock)
        return _listed(&self.held)

    def fill(self, uint32_t count):
        """Hold so many ranges for writing, each beside a gap, and look each up."""
        cdef uint32_t number
        cdef uint64_t start
        cdef Lock lock
        cdef bint right = True
        with nogil:
            for number in range(count):
                start = 2 * <uint64_t>number
                lock = Lock(start, start, 1, 0)
                right = right and not covers(&self.held, &lock) and reserve(&self.held, 2)
                note(&self.held, &lock)
                right = right and covers(&self.held, &lock) and writes(&self.held)
                right = right and holds(&self.held, &lock) and hinders(&self.held, &lock)
        return right and self.held.count == count

    def ask(self, uint32_t kind, uint64_t start, uint64_t end):
        """Return whether the locks hold, hinder and cover one, and whether one is for writing."""
        cdef Lock lock = Lock(start, end, kind, 0)
        return (
            holds(&self.held, &lock), hinders(&self.held, &lock), covers(&self.held, &lock),
            writes(&self.held),
        )

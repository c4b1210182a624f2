"""Locks and waits of one volume for tests, without a session or threads of its own."""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from passthrough.native.abi cimport (
    FUSE_GETLK, FUSE_SETLK, FUSE_SETLKW, fuse_in_header, fuse_interrupt_in, fuse_lk_in,
    fuse_lk_out,
)
from passthrough.native.held cimport (
    Held, Lock, begin_held, covers, end_held, hinders, holds, note, reserve, writes,
)
from passthrough.native.layout cimport FILES, Found, Granted, Limits, OpenFile, Released, open_get
from passthrough.native.libc cimport S_IFREG, close, pthread_mutex_lock, pthread_mutex_unlock
from passthrough.native.locks cimport (
    Locks, do_getlk, do_interrupt, do_setlk, do_setlkw, file_released, locks_close, locks_open,
    owner_closed, waiting,
)
from passthrough.native.lock_table cimport REMEMBERED, LockTable, find_owned
from passthrough.native.memory cimport create, detach
from passthrough.native.state cimport Thread, Volume
from passthrough.native.tables cimport grant, open_add, open_release
from passthrough.native.waits cimport MOST_EARLY, MOST_WAITS

STATES = REMEMBERED
EARLY = MOST_EARLY
WAITS = MOST_WAITS


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


cdef class Locking:
    """A volume with no more than open files and locks."""

    cdef Volume *v
    cdef Pool pool

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
        self.v.options.writeback = writeback
        self.v.block_hook = _block
        self.v.wait_hook = _may_wait
        self.v.finish_hook = _finish
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
        if grant(self.v.tables, &found, &granted) < 0:
            raise OSError("no inode")
        if open_add(self.v.tables, FILES, granted.nodeid, &made, 0, &fh, &in_force) < 0:
            raise OSError("no open file")
        return granted.nodeid, fh

    def release(self, uint64_t fh, *, bint unlock=False):
        """Close an open file."""
        cdef Thread t
        cdef Released out
        self._begin(&t)
        file_released(&t, open_get(self.v.tables, FILES, fh), unlock)
        open_release(self.v.tables, FILES, fh, &out)
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
        cdef int result = 0
        self._begin(&t)
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

    def waiting(self):
        """Return how many requests wait."""
        return waiting(self.v)

    def limit_waits(self, uint32_t most):
        """Let no more than `most` requests wait."""
        (<Locks *>self.v.locks).waits.most = most

    def early(self):
        """Return how many interrupts are remembered."""
        return (<Locks *>self.v.locks).waits.early_count

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

    cdef LockTable *_table(self):
        return &(<Locks *>self.v.locks).table

    cdef void _begin(self, Thread *t):
        memset(t, 0, sizeof(t[0]))
        t.volume = self.v
        t.of_crew = &self.pool


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

    def ask(self, uint32_t kind, uint64_t start, uint64_t end):
        """Return whether the locks hold, hinder and cover one, and whether one is for writing."""
        cdef Lock lock = Lock(start, end, kind, 0)
        return (
            holds(&self.held, &lock), hinders(&self.held, &lock), covers(&self.held, &lock),
            writes(&self.held),
        )

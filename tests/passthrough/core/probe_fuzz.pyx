"""Sends requests without end to the core, and checks the form of each reply; all of it is C.

The driver counts lookups and open files as the kernel does, from the bytes of requests and replies.
At the end the core's tables must say the same.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from passthrough.core cimport abi
from passthrough.core.abi cimport fuse_in_header, fuse_out_header
from passthrough.core.device cimport Buffers, free_buffers, make_buffers, use_buffers
from passthrough.core.face cimport Core
from passthrough.core.identity cimport identity_thread
from passthrough.core.layout cimport DIRECTORIES, FILES, Tables, next_inode
from passthrough.core.libc cimport (
    CLOCK_MONOTONIC, EIO, ENOSYS, S_IFDIR, S_IFMT, clock_gettime, timespec,
)
from passthrough.core.loop cimport OUT_HEADER, serve
from passthrough.core.state cimport Thread
from tests.passthrough.core.probe_requests cimport (
    CREATED, DIRENTS, ENTRY, FORGOTTEN, HEADER, MAX_OPEN, NODES, NO_LIMIT, OPCODES, OPENED,
    OPENED_DIR, PLUS, RELEASED, RELEASED_DIR, ROOM, SILENT, WRITTEN, Fuzz, Node, Opened, Row, make,
    row_of,
)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *, const void *, void *(*)(void *) noexcept nogil, void *)
    int pthread_join(pthread_t, void **)

cdef enum:
    MOST_THREADS = 8
    LAST_ERRNO = 511
    LARGEST_NAME = 255

# The mistakes that are found.
cdef enum:
    ANSWERED = 1  # though the protocol has no answer
    UNANSWERED, NOT_ITS_LENGTH, NOT_ITS_UNIQUE, NOT_AN_ERRNO, BODY_WITH_ERROR, NOT_EIO, NOT_ENOSYS
    BODY_LENGTH, NO_NODEID, SLOT_IN_USE, TOO_MANY, LISTING, WRITTEN_MORE, LOOKUPS, NOT_RELEASED
    LEFT_INODES, LEFT_FILES, NO_THREAD


cdef int _check(Fuzz *f, uint32_t length) noexcept nogil:
    """Check a reply, and note what it has changed; return 0, or what is wrong."""
    cdef const fuse_in_header *h = <const fuse_in_header *>f.request
    cdef const fuse_out_header *out = <const fuse_out_header *>(f.t.out - OUT_HEADER)
    cdef const Row *row = row_of(h.opcode)
    cdef uint64_t head
    if f.received < HEADER:
        return ANSWERED if length else 0
    head = HEADER + h.total_extlen * 8
    if h.len != f.received or head + row.fixed > f.received:
        head = 0  # malformed
    if row.change >= FORGOTTEN:
        if head and row.change != SILENT:
            _forgotten(f, row, f.received - <uint32_t>(head - HEADER))
        return ANSWERED if length else 0
    if length < OUT_HEADER:
        return UNANSWERED
    if out.len != length or length > OUT_HEADER + f.t.out_size:
        return NOT_ITS_LENGTH
    if out.unique != h.unique:
        return NOT_ITS_UNIQUE
    if out.error > 0 or out.error < -LAST_ERRNO:
        return NOT_AN_ERRNO
    if out.error and length > OUT_HEADER:
        return BODY_WITH_ERROR
    if not head:
        return 0 if out.error == -EIO else NOT_EIO
    if row.schema == NULL:
        return 0 if out.error == -ENOSYS else NOT_ENOSYS
    if out.error:
        return 0
    f.done[h.opcode] += 1
    return _check_body(f, row, length - OUT_HEADER)


cdef int _check_body(Fuzz *f, const Row *row, uint32_t length) noexcept nogil:
    cdef const fuse_in_header *h = <const fuse_in_header *>f.request
    cdef const char *arg = f.request + HEADER
    cdef uint64_t fh = (<uint64_t *>arg)[0]
    cdef uint32_t most = row.most
    if row.limit_at != NO_LIMIT:
        most = (<uint32_t *>(arg + row.limit_at))[0]
        if not most and row.limit_at == 0:  # the length of an attribute is asked for
            most = sizeof(abi.fuse_getxattr_out)
    if not row.least <= length <= most:
        return BODY_LENGTH
    if row.change == ENTRY:
        return _granted(f, <abi.fuse_entry_out *>f.t.out, h.opcode == abi.FUSE_LOOKUP)
    if row.change == CREATED:
        return _created(f)
    if row.change == OPENED:
        return _opened(f, FILES, (<abi.fuse_open_out *>f.t.out).fh, h.nodeid)
    if row.change == OPENED_DIR:
        return _opened(f, DIRECTORIES, (<abi.fuse_open_out *>f.t.out).fh, h.nodeid)
    if row.change == RELEASED:
        return _released(f, FILES, fh)
    if row.change == RELEASED_DIR:
        return _released(f, DIRECTORIES, fh)
    if row.change == WRITTEN:
        most = (<abi.fuse_write_in *>arg).size
        return WRITTEN_MORE if (<abi.fuse_write_out *>f.t.out).size > most else 0
    if row.change == DIRENTS or row.change == PLUS:
        return _listed(f, length, row.change == PLUS)
    return 0


cdef int _granted(Fuzz *f, const abi.fuse_entry_out *entry, bint may_be_absent) noexcept nogil:
    cdef uint64_t nodeid = entry.nodeid
    cdef uint32_t index = <uint32_t>nodeid
    cdef Node *node
    if nodeid == abi.FUSE_ROOT_ID:
        return 0
    if not nodeid:
        return 0 if may_be_absent else NO_NODEID
    if index >= NODES:
        return TOO_MANY
    if not f.node_at[index]:
        f.nodes[f.node_count].nodeid = nodeid
        f.nodes[f.node_count].lookups = 0
        f.nodes[f.node_count].directory = entry.attr.mode & S_IFMT == S_IFDIR
        f.node_count += 1
        f.node_at[index] = f.node_count
    node = &f.nodes[f.node_at[index] - 1]
    if node.nodeid != nodeid:
        return SLOT_IN_USE
    node.lookups += 1
    return 0


cdef int _created(Fuzz *f) noexcept nogil:
    cdef const abi.fuse_entry_out *entry = <abi.fuse_entry_out *>f.t.out
    cdef const abi.fuse_open_out *opened = <abi.fuse_open_out *>(entry + 1)
    cdef int wrong = _granted(f, entry, False)
    if wrong or (opened.fh == 0 and f.t.volume.options.no_open):
        return wrong
    return _opened(f, FILES, opened.fh, entry.nodeid)


cdef int _opened(Fuzz *f, int table, uint64_t fh, uint64_t nodeid) noexcept nogil:
    if f.opened_count[table] == MAX_OPEN:
        return TOO_MANY
    f.opened[table][f.opened_count[table]].fh = fh
    f.opened[table][f.opened_count[table]].nodeid = nodeid
    f.opened_count[table] += 1
    return 0


cdef int _released(Fuzz *f, int table, uint64_t fh) noexcept nogil:
    cdef uint32_t at
    for at in range(f.opened_count[table]):
        if f.opened[table][at].fh == fh:
            f.opened_count[table] -= 1
            f.opened[table][at] = f.opened[table][f.opened_count[table]]
            return 0
    return 0  # an fh of the core's own, which no reply has had


cdef int _listed(Fuzz *f, uint32_t length, bint plus) noexcept nogil:
    cdef const char *at = f.t.out
    cdef const char *end = at + length
    cdef const abi.fuse_dirent *entry
    cdef size_t head = sizeof(abi.fuse_entry_out) if plus else 0
    cdef size_t size
    cdef int wrong
    while at < end:
        entry = <const abi.fuse_dirent *>(at + head)
        if at + head + sizeof(abi.fuse_dirent) > end:
            return LISTING
        size = head + sizeof(abi.fuse_dirent) + entry.namelen
        if not 0 < entry.namelen <= LARGEST_NAME or at + size > end:
            return LISTING
        if plus:
            wrong = _granted(f, <const abi.fuse_entry_out *>at, True)
            if wrong:
                return wrong
        f.place = entry.off
        at += (size + 7) // 8 * 8
    return 0


cdef void _forgotten(Fuzz *f, const Row *row, uint32_t received) noexcept nogil:
    cdef const fuse_in_header *h = <const fuse_in_header *>f.request
    cdef const uint64_t *words = <const uint64_t *>(f.request + HEADER)
    cdef uint64_t at, count
    if row.change == FORGOTTEN:
        _forget(f, h.nodeid, words[0])
        return
    count = <uint32_t>words[0]
    if HEADER + 8 + count * 16 <= received:
        for at in range(count):
            _forget(f, words[1 + 2 * at], words[2 + 2 * at])


cdef void _forget(Fuzz *f, uint64_t nodeid, uint64_t count) noexcept nogil:
    cdef uint32_t index = <uint32_t>nodeid
    cdef uint32_t at
    if index >= NODES or not f.node_at[index]:
        return
    at = f.node_at[index] - 1
    if f.nodes[at].nodeid != nodeid:
        return
    f.nodes[at].lookups -= min(count, f.nodes[at].lookups)
    if not f.nodes[at].lookups:
        f.node_count -= 1
        f.nodes[at] = f.nodes[f.node_count]
        f.node_at[<uint32_t>f.nodes[at].nodeid] = at + 1
        f.node_at[index] = 0


# The end: the tables say what the driver has counted, and all is given back.


cdef void _send(Fuzz *f, int opcode, uint64_t nodeid, uint64_t number) noexcept nogil:
    """Send a well-formed request that has one number, padded to the fixed structure."""
    cdef fuse_in_header *h = <fuse_in_header *>f.request
    memset(f.request, 0, HEADER + 64)
    h.opcode, h.nodeid, h.unique = <uint32_t>opcode, nodeid, 2
    f.received = h.len = HEADER + row_of(<uint32_t>opcode).fixed
    memcpy(f.request + HEADER, &number, 8)
    _serve(f)


cdef int _finish(Fuzz *all, int count) noexcept nogil:
    """Release and forget what all have; return 0, or what is wrong."""
    cdef Tables *tables = all.t.volume.tables
    cdef uint32_t streams = tables.inodes[abi.FUSE_ROOT_ID].notes != 0  # READDIR without OPENDIR
    cdef uint32_t index = abi.FUSE_ROOT_ID
    cdef uint64_t lookups, of_one
    cdef uint64_t nodeid
    cdef int number
    for number in range(count):
        if _release_all(&all[number]):
            return NOT_RELEASED
    while True:
        index = next_inode(tables, index)
        if not index:
            break
        nodeid = tables.inodes[index].nodeid
        lookups = tables.inodes[index].lookups
        for number in range(count):
            of_one = _lookups_of(&all[number], nodeid)
            if of_one > lookups:
                return LOOKUPS
            lookups -= of_one
            _send(&all[number], abi.FUSE_FORGET, nodeid, of_one)
        if lookups:
            return LOOKUPS
    for number in range(count):
        if all[number].node_count:
            return LEFT_INODES
    if tables.header.inodes != 1:
        return LEFT_INODES
    if tables.header.opens[FILES] or tables.header.opens[DIRECTORIES] > streams:
        return LEFT_FILES
    return 0


cdef bint _release_all(Fuzz *f) noexcept nogil:
    """Release what is open; return whether something has failed."""
    cdef const Opened *opened
    cdef int table
    cdef uint32_t left
    for table in range(2):
        while f.opened_count[table]:
            left = f.opened_count[table]
            opened = &f.opened[table][0]
            _send(
                f, abi.FUSE_RELEASEDIR if table == DIRECTORIES else abi.FUSE_RELEASE,
                opened.nodeid, opened.fh,
            )
            if f.wrong or f.opened_count[table] == left:
                return True
    return False


cdef uint64_t _lookups_of(const Fuzz *f, uint64_t nodeid) noexcept nogil:
    cdef uint32_t at = f.node_at[<uint32_t>nodeid]
    return f.nodes[at - 1].lookups if at and f.nodes[at - 1].nodeid == nodeid else 0


# The beginning


cdef void _run(Fuzz *f) noexcept nogil:
    cdef uint64_t _number
    for _number in range(f.count):
        make(f)
        _serve(f)
        if f.wrong:
            break


cdef void _serve(Fuzz *f) noexcept nogil:
    """Have the core serve the request from memory that ends with it, for AddressSanitizer."""
    cdef char *request = <char *>malloc(f.received)
    memcpy(request, f.request, f.received)
    f.t.request = <const fuse_in_header *>request
    f.wrong = _check(f, serve(f.t, f.received))
    free(request)


cdef void *_run_thread(void *argument) noexcept nogil:
    cdef Fuzz *f = <Fuzz *>argument
    cdef Thread thread
    cdef Buffers buffers
    memset(&thread, 0, sizeof(thread))
    thread.volume = f.t.volume
    thread.of_crew = f.t.of_crew
    f.wrong = NO_THREAD
    if make_buffers(&buffers, f.head, f.memory_fd, f.number) == 0:
        use_buffers(&thread, &buffers)
        f.t = &thread
        if identity_thread(&thread) == 0:
            _run(f)
        free_buffers(&buffers)
    return NULL


cdef void _run_threads(Fuzz *all, int count) noexcept nogil:
    cdef pthread_t threads[MOST_THREADS]
    cdef Thread *own = all.t
    cdef int number
    for number in range(count):
        all[number].t = own
        all[number].tame = True
        all[number].number = number + 1
        pthread_create(&threads[number], NULL, _run_thread, &all[number])
    for number in range(count):
        pthread_join(threads[number], NULL)
        all[number].t = own


cdef bint _never(Thread *t) noexcept nogil:
    """Have no request wait for a lock: no other thread would end it."""
    return False


def fuzz(Core core, uint64_t count, uint64_t seed, int threads=0):
    """Send `count` requests, the same ones for a seed, and give all back.

    With `threads`, each sends `count` requests of its own, none of them damaged. Return what is
    wrong: its number, or 0; the last request; the successes by opcode; the seconds; 1 if the root
    has a stream left, which stays open, otherwise 0.
    """
    cdef int tasks = max(threads, 1)
    cdef Fuzz *all = <Fuzz *>calloc(<size_t>tasks, sizeof(Fuzz))
    cdef timespec start, end
    cdef int number, wrong
    if all == NULL or tasks > MOST_THREADS:
        raise MemoryError
    core._prepare()
    core._volume.wait_hook = _never
    core._own.of_crew = all  # which nothing reads: a thread of a pool asks before it waits
    for number in range(tasks):
        all[number].t = core._own
        all[number].head = core._crew.head
        all[number].memory_fd = core._crew.memory_fd
        all[number].count = count
        all[number].request = <char *>calloc(1, ROOM)
        all[number].random = (seed * MOST_THREADS + <uint64_t>number) * 0x9E3779B97F4A7C15ULL + 1
    clock_gettime(CLOCK_MONOTONIC, &start)
    with nogil:
        if threads:
            _run_threads(all, threads)
        else:
            _run(all)
    clock_gettime(CLOCK_MONOTONIC, &end)
    core._own.of_crew = NULL
    seconds = end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) / 1e9
    wrong, request = _end(all, tasks)
    done = {
        opcode: sum(all[number].done[opcode] for number in range(tasks))
        for opcode in range(OPCODES)
    }
    for number in range(tasks):
        free(all[number].request)
    free(all)
    return wrong, request, done, seconds, core.directories


cdef _end(Fuzz *all, int count):
    """Return what is wrong, and the request that has shown it."""
    cdef int number
    for number in range(count):
        if all[number].wrong:
            return all[number].wrong, all[number].request[:all[number].received]
    return _finish(all, count), b""

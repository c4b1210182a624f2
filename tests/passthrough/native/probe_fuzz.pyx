"""Sends requests without end to the core, and checks the form of each reply; all of it is C.

The driver counts lookups and open files as the kernel does, from the bytes of requests and replies.
At the end the core's tables must say the same.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from passthrough.native cimport abi
from passthrough.native.abi cimport fuse_in_header, fuse_out_header
from passthrough.native.face cimport Core
from passthrough.native.layout cimport DIRECTORIES, FILES, Tables, next_inode
from passthrough.native.libc cimport (
    CLOCK_MONOTONIC, EIO, ENOSYS, S_IFDIR, S_IFMT, clock_gettime, timespec,
)
from passthrough.native.loop cimport OUT_HEADER, serve
from passthrough.native.state cimport Thread
from tests.passthrough.native.probe_requests cimport (
    CREATED, DIRENTS, ENTRY, FORGOTTEN, HEADER, MAX_OPEN, NODES, NO_LIMIT, OPCODES, OPENED,
    OPENED_DIR, PLUS, RELEASED, RELEASED_DIR, ROOM, SILENT, WRITTEN, Fuzz, Node, Row, make, row_of,
)

cdef enum:
    LAST_ERRNO = 511
    LARGEST_NAME = 255

# What can be wrong.
cdef enum:
    ANSWERED = 1  # though the protocol has no answer
    UNANSWERED, NOT_ITS_LENGTH, NOT_ITS_UNIQUE, NOT_AN_ERRNO, BODY_WITH_ERROR, NOT_EIO, NOT_ENOSYS
    BODY_LENGTH, NO_NODEID, SLOT_IN_USE, TOO_MANY, LISTING, WRITTEN_MORE, LOOKUPS, NOT_RELEASED
    LEFT_INODES, LEFT_FILES


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
    return wrong if wrong else _opened(f, FILES, opened.fh, entry.nodeid)


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


cdef int _finish(Fuzz *f) noexcept nogil:
    cdef Tables *tables = f.t.volume.tables
    cdef uint32_t streams = tables.inodes[abi.FUSE_ROOT_ID].notes != 0  # READDIR without OPENDIR
    cdef int table, opcode
    cdef uint32_t index = 0
    cdef uint32_t left
    cdef uint64_t nodeid
    for table in range(2):
        opcode = abi.FUSE_RELEASEDIR if table == DIRECTORIES else abi.FUSE_RELEASE
        while f.opened_count[table]:
            left = f.opened_count[table]
            _send(f, opcode, f.opened[table][0].nodeid, f.opened[table][0].fh)
            if f.opened_count[table] == left:
                return NOT_RELEASED
    while True:
        index = next_inode(tables, index)
        if not index:
            break
        nodeid = tables.inodes[index].nodeid
        if index == abi.FUSE_ROOT_ID:
            continue
        left = f.node_at[index]
        if tables.inodes[index].lookups != (f.nodes[left - 1].lookups if left else 0):
            return LOOKUPS
        _send(f, abi.FUSE_FORGET, nodeid, f.nodes[left - 1].lookups if left else 0)
    if f.node_count or tables.header.inodes != 1:
        return LEFT_INODES
    if tables.header.opens[FILES] or tables.header.opens[DIRECTORIES] > streams:
        return LEFT_FILES
    return 0


cdef void _run(Fuzz *f, uint64_t count) noexcept nogil:
    cdef uint64_t _number
    for _number in range(count):
        make(f)
        _serve(f)
        if f.wrong:
            return
    f.wrong = _finish(f)


cdef void _serve(Fuzz *f) noexcept nogil:
    """Have the core serve the request from memory that ends with it, for AddressSanitizer."""
    cdef char *request = <char *>malloc(f.received)
    memcpy(request, f.request, f.received)
    f.t.request = <const fuse_in_header *>request
    f.wrong = _check(f, serve(f.t, f.received))
    free(request)


cdef bint _never(Thread *t) noexcept nogil:
    """Have no request wait for a lock: no other thread would end it."""
    return False


def fuzz(Core core, uint64_t count, uint64_t seed):
    """Send `count` requests, the same ones for a seed, and give all back.

    Return what is wrong: its number, or 0; the last request; the successes by opcode; the seconds;
    1 if the root has a stream left, which stays open, otherwise 0.
    """
    cdef Fuzz *f = <Fuzz *>calloc(1, sizeof(Fuzz))
    cdef timespec start, end
    if f == NULL:
        raise MemoryError
    core._prepare()
    core._volume.wait_hook = _never
    f.t = core._own
    f.request = <char *>calloc(1, ROOM)
    f.random = seed * 0x9E3779B97F4A7C15ULL + 1
    clock_gettime(CLOCK_MONOTONIC, &start)
    with nogil:
        _run(f, count)
    clock_gettime(CLOCK_MONOTONIC, &end)
    done = {opcode: f.done[opcode] for opcode in range(OPCODES) if f.done[opcode]}
    seconds = end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) / 1e9
    result = f.wrong, f.request[:f.received], done, seconds, core.directories
    free(f.request)
    free(f)
    return result

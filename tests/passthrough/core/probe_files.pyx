"""Open files for tests: threads of a volume open and read one file at once, without requests."""

import os

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from passthrough.core.abi cimport (
    fuse_getxattr_in, fuse_in_header, fuse_open_in, fuse_open_out, fuse_read_in, fuse_release_in,
    fuse_write_in,
)
from passthrough.core.backing cimport may_have_lost_privileges, note_privileges, passes
from passthrough.core.data cimport do_read, do_write
from passthrough.core.files cimport WRITABLE, do_release, open_for_writing
from passthrough.core.forgotten cimport forget_lookups
from passthrough.core.grants cimport Entry
from passthrough.core.identity cimport identity_thread
from passthrough.core.inodes cimport Loan, borrow_node, give_back, inodes_close, inodes_open
from passthrough.core.journal cimport Journal
from passthrough.core.layout cimport (
    ACQUIRE, FILES, DIRECTORIES, MAX_HANDLE, RELEASE, ROOT_INDEX, Found, Inode, Limits, OpenFile,
    load32, store32,
)
from passthrough.core.libc cimport sched_yield
from passthrough.core.locks cimport locks_close, locks_open
from passthrough.core.memory cimport create, detach
from passthrough.core.names cimport UNSURE, find_name
from passthrough.core.opens cimport do_open
from passthrough.core.state cimport Thread, Volume
from passthrough.core.tables cimport open_add
from passthrough.core.xattrs cimport do_getxattr

cdef extern from * nogil:
    int32_t add_fetch "__atomic_add_fetch"(int32_t *place, int32_t value, int order)


cdef enum:
    ROOM = 1 << 16
    SPIN = 10_000


# A place at which threads wait for one another.
cdef struct Barrier:
    int32_t threads
    int32_t arrived
    int32_t passed


cdef class Probe:
    """A volume without requests; each method may be called by any thread."""

    cdef Volume *v
    cdef object python
    cdef Barrier barrier

    def __cinit__(self):
        self.v = <Volume *>calloc(1, sizeof(Volume))
        if self.v == NULL:
            raise MemoryError

    def __init__(self, bytes source, python, int device=-1):
        """Serve `source`; with a `device` of FUSE the kernel is to pass files through."""
        cdef Limits limits
        cdef Found root
        cdef int error = 0
        self.python = python
        self.v.python = <void *>python
        memcpy(self.v.links, b"/proc/self/fd/", 15)
        self.v.device_fd = device
        self.v.options.passthrough = device >= 0
        self.v.options.allow_direct_io = True
        memset(&limits, 0, sizeof(limits))
        memset(&root, 0, sizeof(root))
        limits.inodes, limits.places, limits.handle_bytes = 1 << 20, 512, MAX_HANDLE
        limits.opens[FILES] = limits.opens[DIRECTORIES] = 1 << 16
        limits.budget = 1 << 60
        st = os.stat(source)
        root.ino, root.device, root.type = st.st_ino, st.st_dev, 0o040000
        root.fd = os.open(source, os.O_PATH)
        self.v.tables = create(&limits, 1, -1, &root, &error)
        if self.v.tables == NULL:
            raise OSError(error, "tables")
        check(inodes_open(self.v))
        self.v.locks_fd = -1
        check(locks_open(self.v))

    def close(self):
        """Close all; return the numbers of inodes and of open files that there were."""
        left = self.v.tables.header.inodes, self.v.tables.header.opens[FILES]
        locks_close(self.v)
        inodes_close(self.v)
        detach(self.v.tables)
        self.v.tables = NULL
        return left

    def __dealloc__(self):
        free(self.v)

    def find(self, bytes name):
        """Count one lookup of a name in the root; return the nodeid."""
        cdef Thread t
        cdef uint64_t nodeid = 0
        make(&t, self.v, NULL)
        check(_find(&t, name, &nodeid))
        return nodeid

    def forget(self, uint64_t nodeid):
        cdef Thread t
        make(&t, self.v, NULL)
        forget_lookups(&t, nodeid, 1)

    def add(self, uint64_t nodeid, int fd, *, int32_t backing_id=0, bint writable=False):
        """Add an open file that takes `fd`; return its fh."""
        cdef OpenFile made
        cdef uint64_t fh = 0
        cdef int32_t in_force = 0
        memset(&made, 0, sizeof(made))
        made.fd, made.twin, made.kind = fd, -1, WRITABLE if writable else 0
        check(open_add(
            self.v.tables, NULL, FILES, nodeid, &made, backing_id, &fh, &in_force
        ))
        return fh

    def release(self, uint64_t fh):
        """Release an open file; without a device, its backing id goes to none."""
        cdef Thread t
        make(&t, self.v, NULL)
        check(_release(&t, ROOT_INDEX, fh))

    def passes(self, uint64_t nodeid):
        cdef Thread t
        make(&t, self.v, NULL)
        return passes(&t, nodeid)

    def note_privileges(self, uint64_t nodeid):
        cdef Thread t
        make(&t, self.v, NULL)
        note_privileges(&t, nodeid)

    def may_have_lost_privileges(self, uint64_t nodeid):
        cdef Thread t
        make(&t, self.v, NULL)
        return may_have_lost_privileges(&t, nodeid)

    def open_for_writing(self, uint64_t nodeid):
        cdef Thread t
        make(&t, self.v, NULL)
        return open_for_writing(&t, nodeid)

    def open_often(self, uint64_t nodeid, int times, int threads):
        """Open and release a file in the calling thread, which loses capabilities for good.

        All `threads` call this, and open at once and release at once. Return how often there was an
        id, or -errno.
        """
        cdef Thread t
        cdef char *out = <char *>malloc(ROOM)
        cdef int result
        make(&t, self.v, out)
        check(identity_thread(&t))
        self.barrier.threads = threads
        with nogil:
            result = _open_often(&t, nodeid, times, &self.barrier)
        free(out)
        return result

    def write(self, uint64_t fh, bytes data, uint32_t flags):
        """Write at offset 0 in the calling thread, which loses capabilities for good."""
        cdef Thread t
        cdef fuse_in_header h
        cdef bytes request
        cdef fuse_write_in asked
        cdef char out[16]
        make(&t, self.v, out)
        check(identity_thread(&t))
        memset(&h, 0, sizeof(h))
        memset(&asked, 0, sizeof(asked))
        t.request = &h
        asked.fh, asked.size, asked.write_flags = fh, <uint32_t>len(data), flags
        request = (<char *>&asked)[:sizeof(asked)] + data
        check(do_write(&t, &h, request, <uint32_t>len(request)))

    def open_in_turn(self, uint64_t first, uint64_t second, int times):
        """Open and release two files in turn, with one descriptor of the process."""
        cdef Thread t
        cdef fuse_open_out out
        cdef int result
        make(&t, self.v, <char *>&out)
        check(identity_thread(&t))
        with nogil:
            result = _open_in_turn(&t, first, second, times)
        check(result)

    def get_often(self, uint64_t nodeid, bytes value, int times):
        """Get the attribute user.a; return how often it had the value, or -errno."""
        cdef Thread t
        cdef char *out = <char *>malloc(ROOM)
        cdef fuse_getxattr_in asked
        cdef bytes request
        cdef const char *given
        cdef const char *wanted = value
        cdef int length = <int>len(value)
        cdef int result
        make(&t, self.v, out)
        self.v.options.xattr = True
        memset(&asked, 0, sizeof(asked))
        asked.size = ROOM
        request = (<char *>&asked)[:sizeof(asked)] + b"user.a\0"
        given = request
        with nogil:
            result = _get_often(&t, nodeid, given, wanted, length, times)
        free(out)
        return result

    def read_often(self, bytes name, bytes content, int times):
        """Look a file up, read it without having opened it, and forget it.

        Return how often the content was right, or -errno.
        """
        cdef Thread t
        cdef char *out = <char *>malloc(ROOM)
        cdef const char *text = name
        cdef const char *wanted = content
        cdef uint32_t length = <uint32_t>len(content)
        cdef int result
        make(&t, self.v, out)
        with nogil:
            result = _read_often(&t, text, wanted, length, times)
        free(out)
        return result


cdef fuse_in_header OF_ROOT
cdef Journal UNREAD  # of all threads: nothing takes over here
memset(&OF_ROOT, 0, sizeof(OF_ROOT))


cdef void make(Thread *t, Volume *v, char *out) noexcept nogil:
    memset(t, 0, sizeof(Thread))
    t.volume = v
    t.out = out
    t.out_size = ROOM
    t.request = &OF_ROOT
    t.journal = &UNREAD
    UNREAD.refused = 0


cdef int check(int result) except -1:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


cdef int _find(Thread *t, const char *name, uint64_t *nodeid) noexcept nogil:
    cdef Inode *directory = NULL
    cdef Loan loan
    cdef Entry entry
    cdef int result = borrow_node(t, ROOT_INDEX, &directory, &loan)
    if result < 0:
        return result
    result = find_name(t, directory, loan.fd, name, UNSURE, &entry)
    give_back(t, &loan)
    nodeid[0] = entry.granted.nodeid
    return result


cdef int _release(Thread *t, uint64_t nodeid, uint64_t fh) noexcept nogil:
    cdef fuse_in_header h
    cdef fuse_release_in asked
    memset(&h, 0, sizeof(h))
    memset(&asked, 0, sizeof(asked))
    h.nodeid = nodeid
    asked.fh = fh
    return do_release(t, &h, <const char *>&asked, sizeof(asked))


cdef int _open_often(Thread *t, uint64_t nodeid, int times, Barrier *barrier) noexcept nogil:
    cdef fuse_in_header h
    cdef fuse_open_in asked
    cdef const fuse_open_out *opened = <const fuse_open_out *>t.out
    cdef int _index, result
    cdef int passed = 0
    cdef int failed = 0
    memset(&h, 0, sizeof(h))
    memset(&asked, 0, sizeof(asked))
    h.nodeid = nodeid
    for _index in range(times):
        _meet(barrier)
        result = do_open(t, &h, <const char *>&asked, sizeof(asked))
        passed += result > 0 and opened.backing_id > 0
        _meet(barrier)
        if result > 0:
            result = _release(t, nodeid, opened.fh)
        failed = min(failed, result)
    return failed if failed else passed


cdef int _open_in_turn(
    Thread *t, uint64_t first, uint64_t second, int times
) noexcept nogil:
    cdef fuse_in_header h
    cdef fuse_open_in asked
    cdef int index, result
    memset(&h, 0, sizeof(h))
    memset(&asked, 0, sizeof(asked))
    for index in range(times):
        h.nodeid = second if index % 2 else first
        result = do_open(t, &h, <const char *>&asked, sizeof(asked))
        if result > 0:
            result = _release(t, h.nodeid, (<const fuse_open_out *>t.out).fh)
        if result < 0:
            return result
    return 0


cdef int _get_often(
    Thread *t, uint64_t nodeid, const char *request, const char *value, int length, int times
) noexcept nogil:
    cdef fuse_in_header h
    cdef int _index, result
    cdef int right = 0
    memset(&h, 0, sizeof(h))
    h.nodeid = nodeid
    for _index in range(times):
        result = do_getxattr(t, &h, request, sizeof(fuse_getxattr_in) + 7)
        if result < 0:
            return result
        right += result == length and memcmp(t.out, value, <size_t>length) == 0
    return right


cdef void _meet(Barrier *barrier) noexcept nogil:
    """Wait until all threads are here."""
    cdef int32_t passed = load32(&barrier.passed, ACQUIRE)
    cdef int looks = 0
    if add_fetch(&barrier.arrived, 1, ACQUIRE) == barrier.threads:
        barrier.arrived = 0
        store32(&barrier.passed, passed + 1, RELEASE)
        return
    while load32(&barrier.passed, ACQUIRE) == passed:
        looks += 1
        if looks > SPIN:  # the others may need this processor
            sched_yield()


cdef int _read_often(
    Thread *t, const char *name, const char *content, uint32_t length, int times
) noexcept nogil:
    cdef fuse_in_header h
    cdef fuse_read_in asked
    cdef int _index, result
    cdef int right = 0
    memset(&h, 0, sizeof(h))
    memset(&asked, 0, sizeof(asked))
    asked.size = length
    for _index in range(times):
        result = _find(t, name, &h.nodeid)
        if result < 0:
            return result
        result = do_read(t, &h, <const char *>&asked, sizeof(asked))
        if result < 0:
            return result
        right += result == <int>length and memcmp(t.out, content, length) == 0
        forget_lookups(t, h.nodeid, 1)
    return right

"""Threads that list, open and close the same directory streams at once, as no kernel does."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from passthrough.core.abi cimport (
    fuse_dirent, fuse_entry_out, fuse_fsync_in, fuse_in_header, fuse_open_in,
    fuse_open_out, fuse_read_in, fuse_release_in,
)
from passthrough.core.directories cimport (
    do_fsyncdir, do_opendir, do_readdir, do_readdirplus, do_releasedir,
)
from passthrough.core.face cimport Core
from passthrough.core.forgotten cimport forget_lookups
from passthrough.core.journal cimport Journal
from passthrough.core.layout cimport ACQUIRE, RELEASE, load64
from passthrough.core.libc cimport (
    CLOCK_THREAD_CPUTIME_ID, EBADF, EINVAL, clock_gettime, timespec,
)
from passthrough.core.listing cimport Stream, stream_at
from passthrough.core.state cimport Thread

cdef extern from * nogil:
    uint64_t exchange64 "__atomic_exchange_n"(uint64_t *place, uint64_t value, int order)

cdef enum:
    STREAMS = 4
    ROOM = 1 << 20
    LONGEST = 16  # of the names that the test lists

cdef uint64_t streams[STREAMS]


cdef int _check(Thread *t, int length, bint plus, uint64_t *end) noexcept nogil:
    """Check the entries of a reply, and give their lookups back; return what is wrong, or 0."""
    cdef const fuse_entry_out *entry
    cdef const fuse_dirent *name
    cdef int at = 0
    while at < length:
        if plus:
            entry = <const fuse_entry_out *>(t.out + at)
            if entry.nodeid:
                forget_lookups(t, entry.nodeid, 1)
            at += <int>sizeof(fuse_entry_out)
        name = <const fuse_dirent *>(t.out + at)
        if not 0 < name.namelen <= LONGEST or not name.ino:
            return 1
        at += <int>(sizeof(fuse_dirent) + (name.namelen + 7) // 8 * 8)
        end[0] = name.off
    return at != length


cdef int _read(
    Thread *t, const fuse_in_header *h, uint64_t fh, uint64_t random, uint64_t *end
) noexcept nogil:
    cdef fuse_read_in read
    cdef bint plus = random & 1
    cdef int result
    memset(&read, 0, sizeof(read))
    read.fh = fh
    read.size = (random >> 8) % 8192
    if random & 6:
        read.offset = end[0]
    if plus:
        result = do_readdirplus(t, h, <const char *>&read, sizeof(read))
    else:
        result = do_readdir(t, h, <const char *>&read, sizeof(read))
    if result >= 0:
        return _check(t, result, plus, end)
    return 0 if result == -EBADF or result == -EINVAL else result


cdef int _turn(Thread *t, const fuse_in_header *h, uint64_t random, uint64_t *end) noexcept nogil:
    """Do one thing to one stream; return 0, or what is wrong."""
    cdef uint64_t *place = &streams[random % STREAMS]
    cdef uint64_t fh = load64(place, ACQUIRE)
    cdef fuse_open_in opened
    cdef fuse_release_in released
    cdef fuse_fsync_in synced
    cdef int what = (random >> 32) % 16
    cdef int result
    memset(&opened, 0, sizeof(opened))
    memset(&released, 0, sizeof(released))
    memset(&synced, 0, sizeof(synced))
    if what > 2:
        return _read(t, h, fh, random >> 16, end)
    if what == 0:
        synced.fh = fh
        result = do_fsyncdir(t, h, <const char *>&synced, sizeof(synced))
        return 0 if not result or result == -EBADF else result
    fh = 0
    if what == 1:
        result = do_opendir(t, h, <const char *>&opened, sizeof(opened))
        if result < 0:
            return result
        fh = (<const fuse_open_out *>t.out).fh
    released.fh = exchange64(place, fh, RELEASE)
    if not released.fh:
        return 0
    return do_releasedir(t, h, <const char *>&released, sizeof(released))


cdef class Lister:
    """One thread's memory, to serve requests for directories of a core."""

    cdef Core core
    cdef Thread thread
    cdef Journal journal
    cdef fuse_in_header header

    def __init__(self, Core core not None):
        self.core = core
        self.thread.volume = core._volume
        self.thread.out_size = ROOM
        self.thread.out = <char *>malloc(ROOM)
        self.thread.request = &self.header
        self.thread.journal = &self.journal

    def __dealloc__(self):
        free(self.thread.out)

    def hammer(self, uint64_t nodeid, uint64_t seed, int rounds):
        """Do so many random things to streams that all threads share; return what was wrong."""
        cdef uint64_t random = seed
        cdef uint64_t end = 0
        cdef int wrong = 0
        cdef int _turn_number
        self.header.nodeid = nodeid
        with nogil:
            for _turn_number in range(rounds):
                random = random * 0x5851F42D4C957F2DULL + 0x14057B7EF767814FULL
                wrong = _turn(&self.thread, &self.header, random >> 16, &end)
                if wrong:
                    break
        return wrong

    def visit(self, uint64_t nodeid, int rounds):
        """List a directory so often, and what is found there, as callers that open nothing."""
        cdef uint64_t found[LONGEST]
        cdef int _turn_number, _again, count, index
        cdef fuse_read_in read
        memset(&read, 0, sizeof(read))
        read.size = 8192
        with nogil:
            for _turn_number in range(rounds):
                self.header.nodeid = nodeid
                count = _found(
                    &self.thread, do_readdirplus(
                        &self.thread, &self.header, <const char *>&read, sizeof(read)
                    ), found
                )
                for index in range(count):
                    self.header.nodeid = found[index]
                    for _again in range(1 + _turn_number % LONGEST):  # so that others come between
                        do_readdir(&self.thread, &self.header, <const char *>&read, sizeof(read))
                    forget_lookups(&self.thread, found[index], 1)

    def list(self, uint64_t nodeid, int rounds):
        """List the names of a directory so often, in a stream of its own."""
        cdef int _turn_number
        cdef fuse_read_in read
        cdef fuse_open_in opened
        cdef fuse_release_in released
        self.header.nodeid = nodeid
        memset(&read, 0, sizeof(read))
        memset(&opened, 0, sizeof(opened))
        memset(&released, 0, sizeof(released))
        read.size = 8192
        with nogil:
            do_opendir(&self.thread, &self.header, <const char *>&opened, sizeof(opened))
            read.fh = released.fh = (<const fuse_open_out *>self.thread.out).fh
            for _turn_number in range(rounds):
                do_readdir(&self.thread, &self.header, <const char *>&read, sizeof(read))
            do_releasedir(&self.thread, &self.header, <const char *>&released, sizeof(released))

    def close(self, uint64_t nodeid):
        """Close the streams of `hammer`."""
        cdef fuse_release_in released
        self.header.nodeid = nodeid
        memset(&released, 0, sizeof(released))
        for place in range(STREAMS):
            released.fh = streams[place]
            streams[place] = 0
            if released.fh:
                do_releasedir(
                    &self.thread, &self.header, <const char *>&released, sizeof(released)
                )

    def lose_state(self, uint64_t fh):
        """Have the state of a stream be that of nothing, as after another process has taken over.
        """
        cdef Stream *stream = stream_at(self.core._volume, fh)
        stream.fh = 0

    def measure(self, uint64_t nodeid, int rounds, bint plus):
        """List a directory whole so often; return entries, and ns of processor time for each."""
        cdef timespec began, ended
        cdef fuse_read_in read
        cdef fuse_open_in opened
        cdef fuse_release_in released
        cdef uint64_t end = 0
        cdef long names = 0
        cdef int _turn_number, result
        self.header.nodeid = nodeid
        memset(&opened, 0, sizeof(opened))
        memset(&released, 0, sizeof(released))
        memset(&read, 0, sizeof(read))
        with nogil:
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &began)
            for _turn_number in range(rounds):
                do_opendir(&self.thread, &self.header, <const char *>&opened, sizeof(opened))
                read.fh = released.fh = (<const fuse_open_out *>self.thread.out).fh
                read.offset = 0
                read.size = 4096
                while True:
                    if plus:
                        result = do_readdirplus(
                            &self.thread, &self.header, <const char *>&read, sizeof(read)
                        )
                    else:
                        result = do_readdir(
                            &self.thread, &self.header, <const char *>&read, sizeof(read)
                        )
                    if result <= 0:
                        break
                    names += _count(&self.thread, result, plus, &end)
                    read.offset = end
                do_releasedir(
                    &self.thread, &self.header, <const char *>&released, sizeof(released)
                )
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ended)
        spent = (ended.tv_sec - began.tv_sec) * 10**9 + ended.tv_nsec - began.tv_nsec
        return names, spent / max(names, 1)


cdef int _found(Thread *t, int length, uint64_t *nodeids) noexcept nogil:
    """Find the files of a reply with entries, each with one lookup; return how many."""
    cdef const fuse_entry_out *entry
    cdef const fuse_dirent *name
    cdef int at = 0, count = 0
    while at < length and count < LONGEST:
        entry = <const fuse_entry_out *>(t.out + at)
        if entry.nodeid:
            nodeids[count] = entry.nodeid
            count += 1
        at += <int>sizeof(fuse_entry_out)
        name = <const fuse_dirent *>(t.out + at)
        at += <int>(sizeof(fuse_dirent) + (name.namelen + 7) // 8 * 8)
    return count


cdef long _count(Thread *t, int length, bint plus, uint64_t *end) noexcept nogil:
    """Return the number of entries; their lookups are kept."""
    cdef const fuse_dirent *name
    cdef long names = 0
    cdef int at = 0
    while at < length:
        at += <int>sizeof(fuse_entry_out) if plus else 0
        name = <const fuse_dirent *>(t.out + at)
        at += <int>(sizeof(fuse_dirent) + (name.namelen + 7) // 8 * 8)
        end[0] = name.off
        names += 1
    return names

"""Directory streams for tests: over a directory, or over a host that the test has written."""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from passthrough.core.libc cimport SEEK_SET, close, errno, getdents64, lseek, ssize_t
from passthrough.core.listing cimport (
    Record, Stream, stream_init, stream_peek, stream_reset, stream_rest, stream_seek, stream_take,
)
from passthrough.core.stream_marks cimport end_kept, make_kept

HOSTS = {}
STREAMS = 2
CALLS = {"getdents64": 0, "lseek": 0}


cdef ssize_t _written_entries(int fd, void *entries, size_t size) noexcept with gil:
    try:
        CALLS["getdents64"] += 1
        data = HOSTS[fd].getdents64(size)
    except OSError as error:
        return -error.errno
    memcpy(entries, <const char *>data, len(data))
    return len(data)


cdef int64_t _written_seek(int fd, int64_t offset) noexcept with gil:
    try:
        CALLS["lseek"] += 1
        return HOSTS[fd].lseek(offset)
    except OSError as error:
        return -error.errno


cdef ssize_t _entries(int fd, void *entries, size_t size) noexcept with gil:
    cdef ssize_t got
    CALLS["getdents64"] += 1
    got = getdents64(fd, entries, size)
    return got if got >= 0 else -errno


cdef int64_t _seek(int fd, int64_t offset) noexcept with gil:
    cdef int64_t reached
    CALLS["lseek"] += 1
    reached = lseek(fd, offset, SEEK_SET)
    return reached if reached >= 0 else -errno


cdef class Listing:
    """One stream; a *host* has `getdents64(size)` and `lseek(offset)`, and any *fd* of its own."""

    cdef Stream *stream
    cdef int fd
    cdef bint shared

    def __init__(self, int fd, *, bint shared=False, host=None):
        self.stream = <Stream *>malloc(sizeof(Stream))
        cdef int error = 0
        stream_init(self.stream)
        cdef int kept_fd = -1
        self.stream.track.kept = make_kept(STREAMS, &kept_fd, &error)
        close(kept_fd)
        self.fd, self.shared = fd, shared
        self.stream.entries, self.stream.seek = _entries, _seek
        if host is not None:
            HOSTS[fd] = host
            self.stream.entries, self.stream.seek = _written_entries, _written_seek
        stream_reset(self.stream, 1, fd, shared)
        CALLS.update(getdents64=0, lseek=0)

    def __dealloc__(self):
        stream_reset(self.stream, 0, -1, False)
        end_kept(self.stream.track.kept, STREAMS, -1)
        free(self.stream)

    def take_over(self):
        """Go on as another process, which knows no more than that the directory is open."""
        stream_reset(self.stream, 1, self.fd, self.shared)

    def read(self, uint64_t offset, int room=-1):
        """Return start, end, number, name and kind of at most *room* entries from an offset on.

        One more entry is looked at, as by a reply that has no room for it.
        """
        cdef Record record
        cdef int result = stream_seek(self.stream, offset)
        found = []
        while not result:
            result = stream_peek(self.stream, &record)
            if result <= 0:
                break
            result = 0
            if len(found) == room:
                break
            name = record.name[:record.length]
            found.append((offset, record.end, record.number, name, record.kind))
            offset = record.end
            stream_take(self.stream)
        stream_rest(self.stream, 0)
        if result < 0:
            raise OSError(-result, "read")
        return found

    @property
    def memory(self):
        """The bytes for entries, and the number of offsets of our own that are known."""
        return self.stream.room, self.stream.track.count

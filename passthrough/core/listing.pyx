"""The entries of an open directory, from any offset that was given as one; offsets.pyx has those.

**The window.** The entries of the last request are kept until the next one. The kernel goes on
inside of a reply if its own caller had no room for the whole, and rm(1) has deleted those entries
by then. A return to the start reads anew, rewinddir(3).

**Memory.** The state of a stream is private to the process, at the index of the open directory's
slot. It begins anew if the slot has got another `fh`, or if another process has taken over: the
marks and openers that the next process needs are in stream_marks.pyx. A `Stream` stays allocated
for the next user of its slot, so a pointer to it is always good. The kernel sends one request at a
time for a stream, and none after RELEASEDIR. A client that breaks this meets the stream's lock,
under which each request looks whether the directory is still open.

**Locks.** A stream's lock is held while one request is served, system calls included: the position
of the descriptor belongs to that request. Only requests for this one stream wait for it.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memmove, memset, strlen

from passthrough.core.inodes cimport close_gone
from passthrough.core.layout cimport (
    ACQUIRE, DIRECTORIES, RELEASE, Released, load64, open_get, store64,
)
from passthrough.core.libc cimport (
    EBADF, EINTR, EINVAL, EIO, ENOMEM, SEEK_SET, close, errno, getdents64, linux_dirent64, lseek,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_trylock,
    pthread_mutex_unlock, ssize_t,
)
from passthrough.core.offsets cimport (
    END, OWN, Mark, begin_at, begin_at_kept, forget_marks, is_passed, mark_of, offset_behind,
    track_reset,
)
from passthrough.core.state cimport Thread, Volume, about_to_block
from passthrough.core.stream_marks cimport Kept, end_kept, make_kept
from passthrough.core.steps cimport RELEASED, note_call, step
from passthrough.core.tables cimport open_release

cdef enum:
    AT_ONCE = 32 * 1024  # bytes of one getdents64(2), as many as glibc's readdir(3) asks for
    LEAST_AT_ONCE = 4 * 1024
    PLUS_SHARE = 4  # of a reply with attributes: so much of it is what the host gives, or less
    PAGE = 4096
    NAME_AT = 19  # offsetof(struct linux_dirent64, d_name)
    ALIGNED = 8  # d_reclen is a multiple
    # A reply of 1 MiB has no more entries than this window, except for those that it leaves out.
    MOST_WINDOW = 2 * 1024 * 1024
    SPARE = 8 * 1024


# The streams of a volume, by the index of their slots; NULL: none yet.
cdef struct Streams:
    pthread_mutex_t lock  # to add one
    uint32_t limit
    Stream **at
    Kept *kept


cdef int streams_open(Volume *v) noexcept nogil:
    """Make room for streams in `Volume.streams`; 0 or -errno."""
    cdef Streams *streams = <Streams *>calloc(1, sizeof(Streams))
    cdef int error = ENOMEM
    if streams == NULL:
        return -ENOMEM
    streams.limit = v.tables.header.limits.opens[DIRECTORIES]
    streams.at = <Stream **>calloc(streams.limit, sizeof(Stream *))
    if streams.at != NULL:
        streams.kept = make_kept(streams.limit, &v.streams_fd, &error)
    if streams.kept == NULL:
        free(streams.at)
        free(streams)
        return -error
    pthread_mutex_init(&streams.lock, NULL)
    v.streams = streams
    return 0


cdef void streams_close(Volume *v) noexcept nogil:
    """Free the streams, which no thread uses any more; their descriptors are the tables'."""
    cdef Streams *streams = <Streams *>v.streams
    cdef uint32_t index
    v.streams = NULL
    if streams == NULL:
        return
    for index in range(streams.limit):
        if streams.at[index] != NULL:
            stream_reset(streams.at[index], 0, -1, False)
            free(streams.at[index])
    end_kept(streams.kept, streams.limit, v.streams_fd)
    free(streams.at)
    free(streams)


cdef Stream *stream_at(Volume *v, uint64_t fh) noexcept nogil:
    """Return the stream in the slot of an open directory; NULL: there is no memory."""
    cdef Streams *streams = <Streams *>v.streams
    cdef uint64_t *place = <uint64_t *>&streams.at[<uint32_t>fh]
    cdef Stream *stream = <Stream *>load64(place, ACQUIRE)
    if stream != NULL:
        return stream
    pthread_mutex_lock(&streams.lock)
    stream = <Stream *>load64(place, ACQUIRE)
    if stream == NULL:
        stream = <Stream *>malloc(sizeof(Stream))
        if stream != NULL:
            stream_init(stream)
            stream.track.kept = streams.kept
            store64(place, <uint64_t>stream, RELEASE)
    pthread_mutex_unlock(&streams.lock)
    return stream


cdef int close_stream(Thread *t, uint64_t fh) noexcept nogil:
    """Close a stream; 0, or -errno, also what the host's file system reports as it closes."""
    cdef Released out
    cdef Stream *s = NULL
    cdef int error
    if open_get(t.volume.tables, DIRECTORIES, fh) == NULL:
        return 0 if t.again else -EBADF  # again: the dead worker has taken it out
    s = stream_at(t.volume, fh)
    if s != NULL:
        lock_stream(t, s)
    note_call(t)
    error = open_release(t.volume.tables, t.journal, DIRECTORIES, fh, &out)
    step(t, RELEASED)
    if s != NULL:
        if not error and s.fh == fh:
            stream_reset(s, 0, -1, False)
        unlock_stream(s)
    if error:
        return error
    if out.fd >= 0 and close(out.fd) < 0:
        error = -errno
    close_gone(t, out.nodeid, &out.gone)
    return error


cdef void release_unopened_stream(Thread *t, uint32_t index) noexcept nogil:
    """Close the stream of a directory that the kernel has forgotten, `Gone.notes`."""
    close_stream(t, load64(&t.volume.tables.opens[DIRECTORIES][index].fh, ACQUIRE))


cdef void lock_stream(Thread *t, Stream *s) noexcept nogil:
    """Wait until no other thread serves a request for the stream."""
    if pthread_mutex_trylock(&s.lock):
        about_to_block(t)
        pthread_mutex_lock(&s.lock)


cdef void unlock_stream(Stream *s) noexcept nogil:
    pthread_mutex_unlock(&s.lock)


# One stream; the caller holds its lock


cdef ssize_t _host_entries(int fd, void *entries, size_t size) noexcept nogil:
    cdef ssize_t got
    while True:
        got = getdents64(fd, entries, size)
        if got >= 0:
            return got
        if errno != EINTR:
            return -errno


cdef int64_t _host_seek(int fd, int64_t offset) noexcept nogil:
    cdef int64_t reached = lseek(fd, offset, SEEK_SET)
    return -errno if reached < 0 else reached


cdef void stream_init(Stream *s) noexcept nogil:
    """Make a stream of no directory in fresh memory."""
    memset(s, 0, sizeof(Stream))
    pthread_mutex_init(&s.lock, NULL)
    s.entries = _host_entries
    s.seek = _host_seek
    stream_reset(s, 0, -1, False)


cdef void stream_reset(Stream *s, uint64_t fh, int fd, bint shared) noexcept nogil:
    """Begin anew with another open directory, or with none; frees what the stream has kept."""
    free(s.data)
    s.data = NULL
    s.room = 0
    s.fh = fh
    s.fd = fd
    s.renumbered = False
    s.at_once = AT_ONCE
    track_reset(&s.track, fh, shared)
    _empty(s, 0)


cdef void stream_expect(Stream *s, uint32_t room, bint plus) noexcept nogil:
    """Read no more from the host at once than a reply of `room` bytes takes."""
    cdef uint32_t wanted = room // <uint32_t>PLUS_SHARE if plus else room
    s.at_once = min(max(wanted, <uint32_t>LEAST_AT_ONCE), <uint32_t>AT_ONCE)


cdef int stream_seek(Stream *s, uint64_t offset) noexcept nogil:
    """Go to the entry at an offset, 0 being the start, which is read anew; 0 or -errno."""
    if offset and _go_on(s, offset):
        return 0
    return _seek(s, offset)


cdef int stream_peek(Stream *s, Record *record) noexcept nogil:
    """Look at the next entry, which stays the next one: 1; 0 if there is none; -errno."""
    cdef const linux_dirent64 *entry
    cdef int result
    if s.next == s.filled:
        result = _refill(s)
        if result <= 0:
            return result
    entry = <const linux_dirent64 *>(s.data + s.next)
    record.end = <uint64_t>entry.d_off
    record.number = entry.d_ino
    record.kind = entry.d_type
    record.name = <const char *>entry + NAME_AT
    record.length = <uint32_t>strlen(record.name)
    return 1


cdef void stream_take(Stream *s) noexcept nogil:
    """Go behind the entry that `stream_peek` has shown."""
    cdef const linux_dirent64 *entry = <const linux_dirent64 *>(s.data + s.next)
    s.next_start = <uint64_t>entry.d_off
    s.next += entry.d_reclen


cdef void stream_rest(Stream *s, uint32_t room) noexcept nogil:
    """Keep no more memory than the window needs until the next request; `room` of the last reply.

    The window of a stream that was read to its end is empty. Users may have many directories open,
    and the next request for one may never come. If the kernel asks for more than a page, its caller
    has room for the whole reply, fs/fuse/readdir.c: then nobody goes on inside of that reply.
    """
    cdef char *data
    if room > PAGE and not s.track.shared:
        s.first = s.next
        s.first_start = s.next_start
    if s.first == s.filled:
        free(s.data)
        s.data = NULL
        s.room = s.first = s.next = s.filled = 0
        return
    if s.room - (s.filled - s.first) <= SPARE:
        return
    memmove(s.data, s.data + s.first, s.filled - s.first)
    s.next -= s.first
    s.filled -= s.first
    s.first = 0
    data = <char *>realloc(s.data, s.filled)
    if data != NULL:
        s.data = data
        s.room = s.filled


cdef void stream_part(Stream *s) noexcept nogil:
    """Do without a descriptor until the next request brings one; the marks stay."""
    free(s.data)
    s.data = NULL
    s.room = 0
    s.fd = -1
    _empty(s, s.next_start)
    s.lost = True


cdef bint _go_on(Stream *s, uint64_t offset) noexcept nogil:
    """Find an offset among the entries at hand, and let go of those before it."""
    cdef const linux_dirent64 *entry
    cdef uint64_t start = s.first_start
    cdef uint32_t at = s.first
    if s.lost:
        return False
    # Nearly always the place behind the last entry, or an entry that did not fit.
    if s.next_start == offset:
        at = s.next
    elif s.end == offset:
        at = s.filled
    else:
        while at < s.filled and start != offset:
            entry = <const linux_dirent64 *>(s.data + at)
            start = <uint64_t>entry.d_off
            at += entry.d_reclen
        if at == s.filled:
            return False
    s.first = s.next = at
    s.first_start = s.next_start = offset
    return True


cdef int _seek(Stream *s, uint64_t offset) noexcept nogil:
    """Go to where the host has an offset; 0 or -errno."""
    cdef const Mark *mark
    cdef int64_t host_offset = <int64_t>offset
    cdef int64_t reached
    cdef bint kept = False
    cdef int error
    if not offset and not s.track.shared:
        forget_marks(&s.track)  # none is asked for after a return to the start, rewinddir(3)
    mark = mark_of(&s.track, offset)
    if mark != NULL:
        host_offset = mark.offset
    elif offset >= OWN and offset != END:
        error = begin_at_kept(&s.track, offset, &host_offset)
        s.lost = s.lost or error != -EINVAL
        if error:
            return error  # EINVAL, as lseek(2) says of the host's offset there
        kept = True
    reached = s.seek(s.fd, host_offset)
    if reached < 0:
        return <int>reached
    _empty(s, offset)
    if not kept and begin_at(&s.track, host_offset, mark):
        s.lost = True
        return -ENOMEM
    return 0


cdef void _empty(Stream *s, uint64_t start) noexcept nogil:
    """Have nothing at hand; the descriptor is at the place that `start` stands for."""
    s.first = s.next = s.filled = 0
    s.first_start = s.next_start = s.end = start
    s.lost = False


cdef int _refill(Stream *s) noexcept nogil:
    """Have more entries at hand: 1; 0 if there are no more; -errno."""
    cdef ssize_t size
    cdef int error
    while s.next == s.filled:
        error = _make_room(s)
        if error:
            return error
        size = s.entries(s.fd, s.data + s.filled, s.at_once)
        if size <= 0:
            return <int>size
        error = _append(s, <uint32_t>min(size, s.at_once))
        if error:
            s.lost = True  # the host is behind entries that are not at hand
            return error
    return 1


cdef int _make_room(Stream *s) noexcept nogil:
    """Have `at_once` bytes behind the window; 0 or -ENOMEM."""
    cdef char *data
    if s.next - s.first > MOST_WINDOW:  # with what a reply has left out; seeking leads back there
        s.first = s.next
        s.first_start = s.next_start
    if s.first and s.room - s.filled < s.at_once:
        memmove(s.data, s.data + s.first, s.filled - s.first)
        s.next -= s.first
        s.filled -= s.first
        s.first = 0
    if s.room - s.filled < s.at_once:
        data = <char *>realloc(s.data, s.filled + s.at_once)
        if data == NULL:
            return -ENOMEM
        s.data = data
        s.room = s.filled + s.at_once
    return 0


cdef int _append(Stream *s, uint32_t size) noexcept nogil:
    """Take `size` bytes behind the window into it, each entry with an offset of its own; 0, -errno.

    EIO: the host has written no entries.
    """
    cdef uint32_t at = s.filled
    cdef uint32_t end = at + size
    cdef uint32_t length
    cdef linux_dirent64 *entry
    cdef const char *name
    cdef int error
    while at < end:
        entry = <linux_dirent64 *>(s.data + at)
        if end - at <= NAME_AT:
            return -EIO
        length = entry.d_reclen
        name = <const char *>entry + NAME_AT
        if length <= NAME_AT or length % ALIGNED or length > end - at:
            return -EIO
        if memchr(name, 0, length - NAME_AT) == NULL:
            return -EIO
        at += length
        if s.track.skipped and is_passed(&s.track, name):
            continue
        error = offset_behind(&s.track, entry.d_off, name, &s.end)
        if error:
            return error
        entry.d_off = <int64_t>s.end
        if s.filled + length != at:
            memmove(s.data + s.filled, entry, length)
        s.filled += length
    return 0

"""Directory streams: opened, read, brought to stable storage, closed.

A listing has names alone (READDIR), or names with entries (READDIRPLUS); dirents.pyx writes both.
If descriptors or memory have run out, the listing ends there. If the reply has names by then, it is
a good one, since the kernel counts lookups of good replies alone; the next request begins with that
name and fails if it must.

With `no_opendir` the kernel reads directories that it has not opened. Such a directory gets one
stream for all callers, which is named in `Inode.notes` and ends when the kernel forgets the inode.
Many directories may have such a stream, so it has a descriptor only while a request is served.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from passthrough.core.abi cimport (
    FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, FUSE_FSYNC_FDATASYNC, fuse_fsync_in, fuse_in_header,
    fuse_open_out, fuse_read_in, fuse_release_in,
)
from passthrough.core.dirents cimport Listing, fresh_ms, is_dot, put_entry, put_name, size_of
from passthrough.core.identity cimport check_open
from passthrough.core.inodes cimport is_hidden, stat_inode
from passthrough.core.journal cimport is_full
from passthrough.core.layout cimport (
    ACQUIRE, DIRECTORIES, KIND_BITS, RELEASE, Inode, OpenFile, exchange32, inode_of,
    load32, load64, may_open, open_get, user_bits,
)
from passthrough.core.libc cimport (
    EBADF, EINTR, ENFILE, ENOMEM, ENOSYS, ESTALE, O_DIRECTORY, O_RDONLY, S_IFDIR, close, errno,
    fdatasync, fsync, struct_stat,
)
from passthrough.core.listing cimport (
    OPENED, SHARED, SQUASHED, Record, Stream, close_stream, lock_stream, stream_at, stream_expect,
    stream_part, stream_peek, stream_reset, stream_rest, stream_seek, stream_take, unlock_stream,
)
from passthrough.core.opening cimport reopen
from passthrough.core.state cimport SQUASH_NONE, Thread, Volume
from passthrough.core.stream_marks cimport keep_opener
from passthrough.core.syncs cimport after_sync, before_sync
from passthrough.core.tables cimport open_add

cdef enum:
    MAX_REPLY = 1 << 20  # bytes


# Opened and closed


cdef int do_opendir(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Open a directory stream, unless the kernel can do without."""
    cdef Volume *v = t.volume
    cdef fuse_open_out *out = <fuse_open_out *>t.out
    cdef Inode *inode
    cdef struct_stat st
    cdef uint64_t fh = 0
    cdef int result = 0
    if v.options.no_opendir:
        return -ENOSYS  # once; as with no_open
    inode = inode_of(v.tables, h.nodeid)
    if inode == NULL:
        return -ESTALE
    if not may_open(v.tables, h.uid):
        return -ENFILE
    if v.options.may_lack_owners:
        result = stat_inode(t, inode, &st)
        if not result:
            result = check_open(v, &st, O_RDONLY)
    if result:
        return result
    result = _open(t, inode, SQUASHED if t.powerless and t.squashed else OPENED, &fh)
    if result:
        return result
    out.fh = fh
    out.open_flags = FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR if v.options.keep_pages else 0
    out.backing_id = 0
    return sizeof(fuse_open_out)


cdef int _open(Thread *t, const Inode *inode, uint32_t kind, uint64_t *fh) noexcept nogil:
    """Open a stream of a directory; 0 or -errno."""
    cdef OpenFile made
    cdef Stream *s
    cdef int32_t backing = 0
    cdef int fd = -1
    cdef int error
    if kind != SHARED:
        fd = reopen(t, inode, S_IFDIR, O_RDONLY | O_DIRECTORY)
        if fd < 0:
            return fd
    made.fd = fd
    made.twin = -1
    made.flags = 0
    made.kind = kind | user_bits(t.request.uid)
    error = open_add(
        t.volume.tables, t.journal if kind != SHARED else NULL, DIRECTORIES, inode.nodeid, &made, 0,
        fh, &backing,
    )
    if error:
        if fd >= 0:
            close(fd)
        return error
    if kind != SQUASHED:
        return 0
    s = stream_at(t.volume, fh[0])
    if s == NULL:
        close_stream(t, fh[0])
        return -ENOMEM
    keep_opener(s.track.kept, fh[0], &t.acting)
    return 0


cdef int do_releasedir(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """Close a stream, with the last descriptor of its caller."""
    return close_stream(t, (<const fuse_release_in *>arg).fh)


cdef int do_fsyncdir(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """Bring a directory to stable storage, fsync(2), fdatasync(2).

    This keeps listings of the stream waiting, as the kernel's lock of the directory does.
    """
    cdef const fuse_fsync_in *sync = <const fuse_fsync_in *>arg
    cdef Listing listing
    cdef int64_t began_ns = before_sync(t)
    cdef int error = _begin(t, h.nodeid, sync.fh, &listing)
    if error:
        return error
    while True:
        if sync.fsync_flags & FUSE_FSYNC_FDATASYNC:
            error = fdatasync(listing.stream.fd)
        else:
            error = fsync(listing.stream.fd)
        if error:
            error = -errno
        if error != -EINTR:
            break
    _end(&listing)
    after_sync(t, began_ns)
    return error


# Streams that the kernel has not opened


cdef int _unopened(Thread *t, uint64_t nodeid, uint64_t *fh) noexcept nogil:
    """Find the stream of a directory for callers that have opened nothing; 0 or -errno."""
    cdef Inode *inode = inode_of(t.volume.tables, nodeid)
    cdef int32_t found = 0
    cdef int error
    if t.volume.options.squash != SQUASH_NONE:
        return -EBADF  # the host was asked for no right
    if inode == NULL:
        return -ESTALE
    if inode.type != S_IFDIR:
        return -EBADF  # its notes are of an open file
    found = load32(<int32_t *>&inode.notes, ACQUIRE)
    if not found:
        error = _open(t, inode, SHARED, fh)
        if error:
            return error
        if exchange32(
            <int32_t *>&inode.notes, &found, <int32_t>fh[0], False, RELEASE, ACQUIRE
        ):
            return 0
        close_stream(t, fh[0])  # another thread was faster
    fh[0] = load64(&t.volume.tables.opens[DIRECTORIES][<uint32_t>found].fh, ACQUIRE)
    return 0


# Listed


cdef int do_readdir(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """List names, with the type of each file, and the number that a lookup shows."""
    return _list(t, h, <const fuse_read_in *>arg, False)


cdef int do_readdirplus(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """List names with what a lookup of each would answer, and counting as one."""
    return _list(t, h, <const fuse_read_in *>arg, True)


cdef int _list(
    Thread *t, const fuse_in_header *h, const fuse_read_in *read, bint plus
) noexcept nogil:
    cdef Listing listing
    cdef int result = _begin(t, h.nodeid, read.fh, &listing)
    if result:
        return result
    listing.room = min(read.size, <uint32_t>MAX_REPLY, t.out_size)
    listing.fresh_ms = fresh_ms(t) if plus else 0
    if not t.volume.options.no_readdir:
        stream_expect(listing.stream, listing.room, plus)
        result = _fill(t, &listing, read.offset, plus)
        stream_rest(listing.stream, listing.room)
    _end(&listing)
    return result


cdef int _begin(Thread *t, uint64_t nodeid, uint64_t fh, Listing *listing) noexcept nogil:
    """Lock the stream of an open directory; 0 or -errno.

    Without an `fh`, it is the stream of the callers that have opened nothing.
    """
    cdef Volume *v = t.volume
    cdef Stream *s
    cdef OpenFile *file
    cdef int error
    if not fh:
        error = _unopened(t, nodeid, &fh)
        if error:
            return error
    if open_get(v.tables, DIRECTORIES, fh) == NULL:
        return -EBADF
    s = stream_at(v, fh)
    if s == NULL:
        return -ENOMEM
    lock_stream(t, s)
    file = open_get(v.tables, DIRECTORIES, fh)
    if file == NULL:  # a client has closed it meanwhile
        unlock_stream(s)
        return -EBADF
    listing.stream = s
    listing.inode = inode_of(v.tables, file.nodeid)
    listing.kind = file.kind & KIND_BITS
    if listing.inode == NULL:
        unlock_stream(s)
        return -ESTALE
    listing.hidden = is_hidden(v, listing.inode)
    if s.fh != fh:
        stream_reset(s, fh, file.fd, listing.kind == SHARED)
    if listing.kind == SHARED:
        s.fd = reopen(t, listing.inode, S_IFDIR, O_RDONLY | O_DIRECTORY)
        if s.fd < 0:
            error = s.fd
            unlock_stream(s)
            return error
    return 0


cdef void _end(Listing *listing) noexcept nogil:
    """Unlock the stream of `_begin`."""
    cdef Stream *s = listing.stream
    if listing.kind == SHARED:
        close(s.fd)
        stream_part(s)
    unlock_stream(s)


cdef int _fill(Thread *t, Listing *listing, uint64_t offset, bint plus) noexcept nogil:
    """Write entries from an offset on, as many as there is room for; their length or -errno."""
    cdef Stream *s = listing.stream
    cdef Record record
    cdef uint32_t filled = 0
    cdef uint32_t size
    cdef int result = stream_seek(s, offset)
    if result:
        return result
    while True:
        result = stream_peek(s, &record)
        if result <= 0:
            break
        size = size_of(&record, plus)
        if listing.hidden and not is_dot(record.name):
            size = 0
        elif size > listing.room - filled or (plus and is_full(t.journal)):
            return filled
        elif plus:
            result = put_entry(t, listing, &record, t.out + filled, &size)
            if result:
                break
        else:
            put_name(t, listing, &record, t.out + filled, size)
        filled += size
        stream_take(s)
    return filled if not result or (plus and filled) else result

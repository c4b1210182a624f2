"""Directory streams: opened, read, brought to stable storage, closed.

A listing has names alone (READDIR), or names with what a lookup of each would answer (READDIRPLUS).
Each entry of the latter counts as one lookup; `.` and `..` have none, and count not. So a name is
looked up only if the reply has room for it.

A name that has vanished meanwhile is left out, and so is one that cannot be looked at: a dead mount
below the source must not make the directory around it unusable. But if descriptors or memory have
run out, the listing ends there. If the reply has names by then, it is a good one, since the kernel
counts lookups of good replies alone; the next request begins with that name and fails if it must.

The names of a stream that a squashed caller has opened are looked up as that caller, beneath the
stream's descriptor. A caller may list a directory without the right to search it: then a name goes
without its entry.

With `no_opendir` the kernel reads directories that it has not opened. Such a directory gets one
stream for all callers, which is named in `Inode.notes` and ends when the kernel forgets the inode.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from passthrough.native.abi cimport (
    FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, FUSE_FSYNC_FDATASYNC, fuse_dirent, fuse_direntplus,
    fuse_fsync_in, fuse_in_header, fuse_open_out, fuse_read_in, fuse_release_in,
)
from passthrough.native.attributes cimport fill_entry
from passthrough.native.grants cimport Entry
from passthrough.native.identity cimport check_open
from passthrough.native.inodes cimport close_gone, is_hidden, stat_inode
from passthrough.native.layout cimport (
    ACQUIRE, DIRECTORIES, RELEASE, ROOT_INDEX, Inode, OpenFile, Released, exchange32,
    inode_of, load32, load64, open_get, shown_beside,
)
from passthrough.native.libc cimport (
    EACCES, EBADF, EINTR, EMFILE, ENFILE, ENOENT, ENOMEM, ENOSYS, ESTALE, O_DIRECTORY, O_RDONLY,
    S_IFDIR, close, errno, fdatasync, fsync, struct_stat,
)
from passthrough.native.listing cimport (
    OPENED, SHARED, SQUASHED, Record, Stream, lock_stream, stream_at, stream_peek, stream_reset,
    stream_rest, stream_seek, stream_take, unlock_stream,
)
from passthrough.native.names cimport find_name
from passthrough.native.opening cimport reopen
from passthrough.native.rare cimport report
from passthrough.native.squash cimport enter_powerless, leave_powerless
from passthrough.native.state cimport REPORT_LEFT_OUT, SQUASH_NONE, Thread, Volume
from passthrough.native.syncs cimport after_sync, before_sync
from passthrough.native.tables cimport open_add, open_release

cdef enum:
    MAX_REPLY = 1 << 20  # bytes
    KIND_SHIFT = 12  # from st_mode to DT_*, as S_IFMT is laid out
    WORD = 8  # names are padded to a multiple


# One directory that is being listed, with its stream locked.
cdef struct Listing:
    Stream *stream
    const Inode *inode
    uint32_t kind  # listing.Kind
    bint hidden
    uint32_t room  # bytes that the reply may have


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
    cdef int fd = reopen(t, inode, S_IFDIR, O_RDONLY | O_DIRECTORY)
    cdef int error
    if fd < 0:
        return fd
    made.fd = fd
    made.twin = -1
    made.flags = 0
    made.kind = kind
    error = open_add(t.volume.tables, DIRECTORIES, inode.nodeid, &made, 0, fh, &backing)
    if error:
        close(fd)
        return error
    if kind != SQUASHED:
        return 0
    s = stream_at(t.volume, fh[0])
    if s == NULL:
        _release(t, fh[0])
        return -ENOMEM
    lock_stream(t, s)
    stream_reset(s, fh[0], fd, False)
    s.opener = t.acting
    s.has_opener = True
    unlock_stream(s)
    return 0


cdef int do_releasedir(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """Close a stream, with the last descriptor of its caller."""
    return _release(t, (<const fuse_release_in *>arg).fh)


cdef int _release(Thread *t, uint64_t fh) noexcept nogil:
    """Close a stream; 0, or -errno, also what the host's file system reports as it closes."""
    cdef Released out
    cdef Stream *s = NULL
    cdef int error
    if open_get(t.volume.tables, DIRECTORIES, fh) == NULL:
        return -EBADF
    s = stream_at(t.volume, fh)
    if s != NULL:
        lock_stream(t, s)
    error = open_release(t.volume.tables, DIRECTORIES, fh, &out)
    if s != NULL:
        if not error and s.fh == fh:
            stream_reset(s, 0, -1, False)
        unlock_stream(s)
    if error:
        return error
    if close(out.fd) < 0:
        error = -errno
    close_gone(t, out.nodeid, &out.gone)
    return error


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
    unlock_stream(listing.stream)
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
        _release(t, fh[0])  # another thread was faster
    fh[0] = load64(&t.volume.tables.opens[DIRECTORIES][<uint32_t>found].fh, ACQUIRE)
    return 0


cdef void release_unopened_stream(Thread *t, uint32_t index) noexcept nogil:
    """Close the stream of a directory that the kernel has forgotten, `Gone.notes`."""
    _release(t, load64(&t.volume.tables.opens[DIRECTORIES][index].fh, ACQUIRE))


# Listed


cdef int do_readdir(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """List names, and the type of each file; nothing is looked up.

    The number of a name is that of what the directory itself has there. If something is mounted on
    the name, that is what lies beneath, as on any file system.
    """
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
    if not t.volume.options.no_readdir:
        result = _fill(t, &listing, read.offset, plus)
        stream_rest(listing.stream)
    unlock_stream(listing.stream)
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
    listing.kind = file.kind
    if listing.inode == NULL:
        unlock_stream(s)
        return -ESTALE
    listing.hidden = is_hidden(v, listing.inode)
    if s.fh != fh:
        stream_reset(s, fh, file.fd, file.kind == SHARED)
    return 0


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
        size = _size(&record, plus)
        if listing.hidden and not _is_dot(record.name):
            size = 0
        elif size > listing.room - filled:
            return filled
        elif plus:
            result = _put_entry(t, listing, &record, t.out + filled, &size)
            if result:
                break
        else:
            _put_name(listing, &record, t.out + filled, size)
        filled += size
        stream_take(s)
    return filled if not result or (plus and filled) else result


cdef inline uint32_t _size(const Record *record, bint plus) noexcept nogil:
    cdef size_t head = sizeof(fuse_direntplus) if plus else sizeof(fuse_dirent)
    return <uint32_t>((head + record.length + WORD - 1) // WORD * WORD)


cdef inline bint _is_dot(const char *name) noexcept nogil:
    return name[0] == b'.' and (name[1] == 0 or (name[1] == b'.' and name[2] == 0))


cdef void _put_name(
    const Listing *listing, const Record *record, char *place, uint32_t size
) noexcept nogil:
    """Write a name with the number that users know."""
    cdef const Inode *inode = listing.inode
    cdef uint64_t number
    # The parent of the root is the root.
    if _is_dot(record.name) and (record.length == 1 or inode.nodeid == ROOT_INDEX):
        number = inode.shown_ino
    else:
        number = shown_beside(inode, record.number)
    _put(<fuse_dirent *>place, record, number, record.kind, size)


cdef inline void _put(
    fuse_dirent *out, const Record *record, uint64_t number, uint32_t kind, uint32_t size
) noexcept nogil:
    """Write an entry of `size` bytes."""
    cdef char *name = <char *>(out + 1)
    out.ino = number
    out.off = record.end
    out.namelen = record.length
    out.type = kind
    memcpy(name, record.name, record.length)
    memset(name + record.length, 0, size - sizeof(fuse_dirent) - record.length)


cdef int _put_entry(
    Thread *t, const Listing *listing, const Record *record, char *place, uint32_t *size
) noexcept nogil:
    """Write a name with its entry, in `size` bytes, or leave it out: then 0 bytes.

    Return 0; -EMFILE, -ENFILE or -ENOMEM, which tell nothing of the file.
    """
    cdef fuse_direntplus *out = <fuse_direntplus *>place
    cdef uint32_t behind = <uint32_t>(size[0] - sizeof(out.entry_out))
    cdef Entry entry
    cdef int error = -EACCES
    if not _is_dot(record.name):
        error = _look_up(t, listing, record.name, &entry)
        if not error:
            fill_entry(t, &entry, &out.entry_out)
            _put(
                &out.dirent, record, entry.granted.shown_ino, entry.st.st_mode >> KIND_SHIFT, behind
            )
            return 0
        if error == -EMFILE or error == -ENFILE or error == -ENOMEM:
            return error
        if error != -EACCES or t.volume.options.squash == SQUASH_NONE:
            if error != -ENOENT:
                report(t.volume, REPORT_LEFT_OUT, -error, record.name)
            size[0] = 0
            return 0
    memset(&out.entry_out, 0, sizeof(out.entry_out))
    _put_name(listing, record, <char *>&out.dirent, behind)
    return 0


cdef int _look_up(
    Thread *t, const Listing *listing, const char *name, Entry *entry
) noexcept nogil:
    """Look a name up beneath the stream's own descriptor; 0 or -errno."""
    cdef Stream *s = listing.stream
    cdef int error
    if listing.kind != SQUASHED:
        return find_name(t, listing.inode, s.fd, name, entry)
    if not s.has_opener:
        return -EACCES  # another process has known the opener
    error = enter_powerless(t, &s.opener, NULL, 0)
    if error:
        return error
    error = find_name(t, listing.inode, s.fd, name, entry)
    leave_powerless(t)
    return error

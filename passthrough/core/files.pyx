"""Open files: added and found, brought to stable storage, closed.

**Flags of the reply.** The kernel opens a host's file that passes through with the caller's flags,
and for good. A caller that asks for O_DIRECT is served by the worker, because dd(1) takes the flag
off again.

**close(2)** of a caller's descriptor is a FLUSH, for which the caller waits. FLUSH has three tasks:
the host's file system reports on close(2), the owner's locks end, and the kernel hears of stores
into a shared map. If none of them can have anything to do, FOPEN_NOFLUSH spares the request
(`_needs_flush`). Stores need a file that is open for reading and writing, mmap(2). With FLUSH the
kernel also writes the stores into a file that does not pass through to the host.

**no_open.** OPEN fails with ENOSYS, and requests come with fh 0. The kernel has checked if the
caller may write, so the worker opens each such file once, for all that the host allows. Its index
stands in Inode.notes until the kernel forgets the inode. A volume that squashes ids refuses fh 0:
a caller that has opened nothing has not been checked.

**Served again.** RELEASE succeeds if there is no such file: the dead worker has taken it out. A
file system reports an error of writing once for each open file. If the dead worker had it from
fsync(2) or close(2), the second call may succeed, and the caller is told so.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t

from passthrough.core.abi cimport (
    FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, FOPEN_PASSTHROUGH, FUSE_FSYNC_FDATASYNC,
    FUSE_POSIX_LOCKS, FUSE_RELEASE_FLOCK_UNLOCK, fuse_flush_in, fuse_fsync_in, fuse_release_in,
)
from passthrough.core.backing cimport (
    close_backing, may_have_lost_privileges, open_backing, passes,
)
from passthrough.core.identity cimport check_change, is_host_root
from passthrough.core.inodes cimport close_gone, stat_inode
from passthrough.core.layout cimport (
    ACQUIRE, FILES, MARK_SHIFT, RELAXED, RELEASE, UNDECIDED, Inode, Released, exchange32, inode_of,
    load32, load64, mount_of, next_open, open_get, store32, user_bits,
)
from passthrough.core.libc cimport (
    CLOCK_REALTIME, EACCES, EAGAIN, EBADF, EINTR, ENOSYS, EPERM, EROFS, ESTALE, ETXTBSY,
    F_DUPFD_CLOEXEC, O_ACCMODE, O_DIRECT, O_RDONLY, O_RDWR, S_IFREG, clock_gettime, close, errno,
    fcntl, fdatasync, fstat, fsync, timespec,
)
from passthrough.core.locks cimport file_released, owner_closed
from passthrough.core.notify cimport attributes_changed
from passthrough.core.opening cimport reopen, request_flags
from passthrough.core.powerless cimport enter_itself, leave_itself
from passthrough.core.state cimport Options, uses
from passthrough.core.steps cimport RELEASED, note_call, step
from passthrough.core.syncs cimport after_sync, before_sync
from passthrough.core.tables cimport open_add, open_release
from passthrough.core.timeouts cimport FILE_ATTR, Timeout, timeout_given, timeout_of


# Added


cdef int add_file(
    Thread *t, uint64_t nodeid, int fd, int flags, const struct_stat *st, fuse_open_out *out
) noexcept nogil:
    """Add a file, opened with a caller's flags, to the table, and write what OPEN answers.

    Take the descriptor. `st` are the file's present attributes; NULL: they are not known.
    """
    cdef const Options *o = &t.volume.options
    cdef OpenFile made
    cdef int32_t in_force = 0
    cdef int result
    made.fd = fd
    made.twin = -1
    made.flags = <uint32_t>request_flags(o, flags)
    made.kind = user_bits(t.request.uid) | (DIRECT if made.flags & <uint32_t>O_DIRECT else 0)
    if flags & O_ACCMODE != O_RDONLY:
        made.kind |= WRITABLE
    if _may_reserve(t, nodeid) and not (made.kind & WRITABLE and is_host_root(t)):
        made.kind |= UNRESERVED
    if flags & O_ACCMODE == O_RDWR:
        made.kind |= MAPPABLE | (_mark_of(st) if st != NULL else 0)
    result = open_add(
        t.volume.tables, t.journal, FILES, nodeid, &made, UNDECIDED if o.passthrough else 0,
        &out.fh, &in_force,
    )
    if result == -EAGAIN:
        result = _add_first(t, nodeid, &made, st, &out.fh, &in_force)
    if result < 0:
        close(fd)
        return result
    if in_force:
        out.open_flags = FOPEN_PASSTHROUGH | (FOPEN_DIRECT_IO if flags & O_DIRECT else 0)
    else:
        out.open_flags = FOPEN_KEEP_CACHE if o.keep_pages else 0
    if not _needs_flush(t, nodeid, made.kind, in_force != 0):
        out.open_flags |= FOPEN_NOFLUSH
    out.backing_id = in_force
    return 0


cdef bint _needs_flush(
    Thread *t, uint64_t nodeid, uint32_t kind, bint passes_through
) noexcept nogil:
    """Return whether closing a file's descriptors may have an effect before the last one.

    A file that is opened to be read has written nothing. Its owner may hold locks, once the volume
    has had one (locks.pyx). An owner that locks a file for writing must have its locks ended by
    FLUSH, if the locks are the host's: the volume's first lock may come after this open.
    """
    if not kind & WRITABLE:
        return load32(&t.volume.locks_used, ACQUIRE) != 0
    if uses(t, FUSE_POSIX_LOCKS) or _reports_on_close(t, nodeid):
        return True
    return kind & MAPPABLE != 0 and not (passes_through and not _remembered_s(t))


cdef bint _reports_on_close(Thread *t, uint64_t nodeid) noexcept nogil:
    """Return whether the host's file system may have something to do or to report on close(2)."""
    return not t.volume.options.silent_close or not _is_on_source(t, nodeid)


cdef bint _may_reserve(Thread *t, uint64_t nodeid) noexcept nogil:
    """Return whether the host's file system may keep blocks for root."""
    return t.volume.options.reserves or not _is_on_source(t, nodeid)


cdef bint _is_on_source(Thread *t, uint64_t nodeid) noexcept nogil:
    """Return whether the file lies on the source's own mount, the type of which is known."""
    cdef const Inode *inode = inode_of(t.volume.tables, nodeid)
    return inode != NULL and mount_of(t.volume.tables, inode) == 0


cdef uint64_t _remembered_s(Thread *t) noexcept nogil:
    """Return for how many seconds the kernel may answer stat(2) of a file without asking.

    0 stands for no time at all. If the timeout has become shorter, the kernel may still remember
    attributes for that of the mount's options.
    """
    cdef Timeout known = timeout_of(&t.volume.timeouts, FILE_ATTR)
    cdef Timeout given = timeout_given(&t.volume.timeouts, FILE_ATTR)
    cdef bint more = known.nanoseconds or given.nanoseconds
    return max(known.seconds, given.seconds) + more


cdef int _add_first(
    Thread *t, uint64_t nodeid, const OpenFile *made, const struct_stat *st,
    uint64_t *fh, int32_t *in_force
) noexcept nogil:
    """Add the first open file of an inode, with a backing id if it may have one; or -errno.

    Another thread may be faster by now. Then its id is in force, and this one is closed.
    """
    cdef bint entered = enter_itself(t)
    cdef int32_t backing_id = open_backing(t, made.fd, st, made.kind & UNRESERVED)
    cdef int result = open_add(
        t.volume.tables, t.journal, FILES, nodeid, made, backing_id, fh, in_force
    )
    if backing_id and (result < 0 or in_force[0] != backing_id):
        close_backing(t.volume, backing_id)
    leave_itself(t, entered)
    return result


cdef bint open_for_writing(Thread *t, uint64_t nodeid) noexcept nogil:
    """Return whether a caller has the inode open to write to it."""
    cdef const Inode *inode = inode_of(t.volume.tables, nodeid)
    cdef const OpenFile *file
    cdef uint64_t fh
    cdef uint32_t index
    if inode == NULL or not load32(<const int32_t *>&inode.opens, RELAXED):
        return False
    index = next_open(t.volume.tables, FILES, 0)
    while index:
        file = &t.volume.tables.opens[FILES][index]
        fh = load64(&file.fh, ACQUIRE)
        if (
            load64(&file.nodeid, ACQUIRE) == nodeid
            and load32(<const int32_t *>&file.kind, ACQUIRE) & WRITABLE
            and load64(&file.fh, ACQUIRE) == fh
        ):
            return True
        index = next_open(t.volume.tables, FILES, index)
    return False


# Found


cdef int file_of(Thread *t, uint64_t fh, uint64_t nodeid, OpenFile **file) noexcept nogil:
    """Find an open file; fh 0 is that of an inode that was never opened. EBADF: there is none."""
    if not fh:
        return _unopened(t, nodeid, file)
    file[0] = open_get(t.volume.tables, FILES, fh)
    return 0 if file[0] != NULL else -EBADF


cdef int _unopened(Thread *t, uint64_t nodeid, OpenFile **file) noexcept nogil:
    """Find the file that the worker has opened for callers that open nothing, or open it."""
    cdef Inode *inode = inode_of(t.volume.tables, nodeid)
    cdef OpenFile made
    cdef uint64_t fh = 0
    cdef int32_t in_force = 0
    cdef int32_t noted = 0
    cdef int result
    if t.volume.options.squash:
        return -EBADF
    if inode == NULL:
        return -ESTALE
    if inode.type != S_IFREG:
        return -EBADF  # its notes are of a stream, if it is a directory
    noted = load32(<const int32_t *>&inode.notes, ACQUIRE)
    if not noted:
        result = _open_unopened(t, inode, &made)
        if result < 0:
            return result
        result = open_add(t.volume.tables, NULL, FILES, nodeid, &made, 0, &fh, &in_force)
        if result < 0:
            close(made.fd)
            return result
        if exchange32(
            <int32_t *>&inode.notes, &noted, <int32_t>fh, False, RELEASE, ACQUIRE
        ):
            noted = <int32_t>fh
        else:  # another thread was faster
            _close_file(t, fh)
    file[0] = &t.volume.tables.opens[FILES][<uint32_t>noted]
    return 0


cdef int _open_unopened(Thread *t, const Inode *inode, OpenFile *made) noexcept nogil:
    """Open an inode to be read and written, or at least to be read; return 0 or -errno."""
    cdef struct_stat st
    cdef int fd = 0
    made.twin = -1
    made.flags = 0
    made.kind = UNOPENED | WRITABLE | (UNRESERVED if _may_reserve(t, inode.nodeid) else 0)
    if t.volume.options.may_lack_owners:
        fd = stat_inode(t, inode, &st)
        if fd == 0:
            fd = check_change(t.volume, &st)
    if fd == 0:
        fd = -EROFS if t.volume.options.readonly else reopen(t, inode, S_IFREG, O_RDWR)
    if fd == -EROFS or fd == -ETXTBSY or fd == -EACCES or fd == -EPERM:
        made.kind = UNOPENED
        fd = reopen(t, inode, S_IFREG, O_RDONLY)
    made.fd = fd
    return fd if fd < 0 else 0


cdef void release_unopened(Thread *t, uint32_t index) noexcept nogil:
    """Close what `file_of` has opened of an inode that the kernel has just forgotten.

    The table has cleared the inode's notes under its mutex. So a request that comes after a new
    lookup opens the file anew, and none can have this one in hand.
    """
    _close_file(t, load64(&t.volume.tables.opens[FILES][index].fh, ACQUIRE))


# Closed


cdef int do_flush(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Let the host's file system report what it does on close(2): a caller closes a descriptor.

    The owner's locks on the file end with that, also if an error is reported.
    """
    cdef const fuse_flush_in *asked = <const fuse_flush_in *>arg
    cdef OpenFile *file
    cdef int copy
    cdef int result = 0
    if not asked.fh:
        return -ENOSYS  # a file that was never opened has nothing to report
    file = open_get(t.volume.tables, FILES, asked.fh)
    if file == NULL:
        return -EBADF
    if _reports_on_close(t, file.nodeid):
        copy = fcntl(file.fd, F_DUPFD_CLOEXEC, 0)
        # If descriptors have run out, the file cannot report, and nothing has failed.
        if copy >= 0 and close(copy) < 0:
            result = -errno
    _tell(t, file)
    owner_closed(t, file.nodeid, asked.lock_owner)
    return result


cdef void _tell(Thread *t, OpenFile *file) noexcept nogil:
    """Have the kernel forget attributes that the host may have changed without a request."""
    if may_have_lost_privileges(t, file.nodeid):
        attributes_changed(t.volume, file.nodeid)
    else:
        _tell_stores(t, file)


cdef uint32_t _mark_of(const struct_stat *st) noexcept nogil:
    """Return the bits of OpenFile.kind for what stores change: a mix of mtime and blocks."""
    cdef uint32_t mixed = <uint32_t>(st.st_mtim.tv_sec * 1000 + st.st_mtim.tv_nsec // 1000000)
    mixed ^= <uint32_t>st.st_blocks * 0x9E3779B1u
    return (mixed ^ mixed >> 16) << MARK_SHIFT


cdef void _tell_stores(Thread *t, OpenFile *file) noexcept nogil:
    """Have the kernel forget attributes that stores into a shared map may have changed.

    If the file passes through, only the host sees such stores. After a write(2) that passes through
    the kernel asks by itself (fuse_passthrough_end_write(), fs/fuse/passthrough.c). The kernel
    remembers attributes for attr_timeout, so it has asked after every older change. A map outlives
    its descriptor: after FLUSH, RELEASE looks for stores that came later.
    """
    cdef struct_stat st
    cdef timespec now
    cdef uint32_t mark
    cdef uint32_t kind = <uint32_t>load32(<const int32_t *>&file.kind, ACQUIRE)
    if not kind & MAPPABLE or not _remembered_s(t) or not passes(t, file.nodeid):
        return
    if fstat(file.fd, &st) < 0:
        return
    clock_gettime(CLOCK_REALTIME, &now)
    if now.tv_sec - st.st_mtim.tv_sec > <long>_remembered_s(t) + 1:
        return
    mark = _mark_of(&st)
    if kind >> MARK_SHIFT << MARK_SHIFT == mark:
        return
    kind ^= kind >> MARK_SHIFT << MARK_SHIFT
    # The mark is stored last, so that a successor tells the kernel if this worker dies here.
    attributes_changed(t.volume, file.nodeid)
    store32(<int32_t *>&file.kind, <int32_t>(mark | kind), RELEASE)


cdef int do_fsync(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Bring a file to stable storage, fsync(2) or fdatasync(2)."""
    cdef const fuse_fsync_in *asked = <const fuse_fsync_in *>arg
    cdef OpenFile *file = NULL
    cdef int result = file_of(t, asked.fh, h.nodeid, &file)
    cdef int64_t began_ns
    if result < 0:
        return result
    began_ns = before_sync(t)
    while True:
        result = fdatasync(file.fd) if asked.fsync_flags & FUSE_FSYNC_FDATASYNC else fsync(file.fd)
        if result < 0:
            result = -errno
        if result != -EINTR:
            break
    after_sync(t, began_ns)
    return result


cdef int do_release(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Close an open file: the last descriptor of a caller is closed.

    An flock(2) on it would end with the host's descriptor, unless the kernel has made this file the
    one that all callers read and write through.
    """
    cdef const fuse_release_in *asked = <const fuse_release_in *>arg
    cdef OpenFile *file = open_get(t.volume.tables, FILES, asked.fh)
    if file == NULL:
        return 0 if t.again else -EBADF
    _tell(t, file)
    note_call(t)
    file_released(t, file, asked.release_flags & FUSE_RELEASE_FLOCK_UNLOCK != 0)
    return _close_file(t, asked.fh)


cdef int _close_file(Thread *t, uint64_t fh) noexcept nogil:
    """Take an open file out of the table, and close it; return 0 or -errno.

    The error is that of the host's file system; the descriptors are gone all the same.
    """
    cdef Released released
    cdef int result = open_release(t.volume.tables, t.journal, FILES, fh, &released)
    if result < 0:
        return result
    step(t, RELEASED)
    if released.twin >= 0 and close(released.twin) < 0:
        result = -errno
    if close(released.fd) < 0:
        result = -errno
    if released.backing_id:
        close_backing(t.volume, released.backing_id)
    close_gone(t, released.nodeid, &released.gone)
    return result

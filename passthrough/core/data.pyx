"""Data of open files: read and written.

READ reads into the reply, and WRITE writes from the request. Both begin at a page, as O_DIRECT
wants it. Offset and size are the caller's: if the host's file system wants more of them, or has no
O_DIRECT at all, the caller gets its errno. One write is excepted. The kernel writes the pages of a
mapped file back through any descriptor, and the last write ends where the file ends, at a place
that suits no device. If such a write is not aligned, it goes through the host's cache.

fcntl(2) can change the flags of an open file, and each request brings those of its moment. O_APPEND
and O_SYNC go with a single write, pwritev2(2). O_DIRECT cannot, so a file gets a second descriptor
when a request first differs from the open. F_SETFL would change the first descriptor under threads
that are about to use it.

**Suid and sgid bits.** Threads lack CAP_FSETID, so each write to a file with such bits would clear
them on the host. Some writes must not: those of root, and pages that the kernel writes back. So
each write looks at the mode first, in 0.3 us. The bits that a file had at an earlier write say
nothing, because any process of the host may have set them since. If a server may have to be asked,
statx(2) asks for the mode alone: for times, NFS would first send all written data to the server.

**Served again** (repeated.pyx). A write at an offset is made twice. Before an append the size is
noted. The bytes behind that size then tell how much of the append is done, and the rest follows.
"""

from libc.stdint cimport int64_t, uint64_t

from passthrough.core.abi cimport (
    FUSE_WRITE_KILL_SUIDGID, fuse_read_in, fuse_write_in, fuse_write_out,
)
from passthrough.core.files cimport DIRECT, UNRESERVED, file_of
from passthrough.core.identity cimport (
    enter_content, enter_unreserved, leave_content, leave_unreserved,
)
from passthrough.core.layout cimport ACQUIRE, OpenFile, load32, set_twin
from passthrough.core.libc cimport (
    AT_EMPTY_PATH, EINTR, EINVAL, EIO, EPERM, F_GETFL, O_ACCMODE, O_APPEND, O_CLOEXEC, O_DIRECT,
    O_DSYNC, O_NOATIME, O_SYNC, RWF_APPEND, RWF_DSYNC, RWF_SYNC, S_ISGID, S_ISUID, STATX_MODE,
    STATX_SIZE, close, errno, fcntl, fstat, fsync, iovec, off_t, pread, pwrite, pwritev2, ssize_t,
    statx, struct_stat, struct_statx,
)
from passthrough.core.opening cimport open_path, request_flags
from passthrough.core.repeated cimport appended, size_before
from passthrough.core.state cimport PATH_ROOM, Options, path_of
from passthrough.core.steps cimport MADE, step


# One write of a caller.
cdef struct Piece:
    const char *data
    size_t size
    off_t offset
    int flags  # of open(2), as the file has them by now


cdef int do_read(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Read at an offset; fewer bytes than asked for mean the end of the file."""
    cdef const fuse_read_in *asked = <const fuse_read_in *>arg
    cdef OpenFile *file = NULL
    cdef ssize_t got
    cdef int fd
    if asked.size > MAX_DATA or asked.size > t.out_size:
        return -EINVAL
    fd = file_of(t, asked.fh, h.nodeid, &file)
    if fd < 0:
        return fd
    fd = _following(t, file, asked.fh, <int>asked.flags)
    if fd < 0:
        return fd
    while True:
        got = pread(fd, t.out, asked.size, <off_t>asked.offset)
        if got >= 0:
            return <int>got
        if errno != EINTR:
            return -errno


cdef int do_write(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Write at an offset, or at the end of the file with O_APPEND."""
    cdef const fuse_write_in *asked = <const fuse_write_in *>arg
    cdef fuse_write_out *out = <fuse_write_out *>t.out
    cdef OpenFile *file = NULL
    cdef Piece piece
    cdef bint clears, checked
    cdef ssize_t written
    cdef int result
    if n - sizeof(fuse_write_in) != asked.size:
        return -EIO
    result = file_of(t, asked.fh, h.nodeid, &file)
    if result < 0:
        return result
    piece.data = arg + sizeof(fuse_write_in)
    piece.size = asked.size
    piece.offset = <off_t>asked.offset
    # Many share a file without fh: the kernel has found the end for those that append.
    piece.flags = request_flags(&t.volume.options, <int>asked.flags if asked.fh else 0)
    clears = asked.write_flags & FUSE_WRITE_KILL_SUIDGID != 0
    # Before a write with O_DIRECT, and to a file without fh, the kernel may send no SETATTR.
    checked = asked.fh != 0 and not (clears and <int>asked.flags & O_DIRECT)
    written = _write_checked(t, file, asked.fh, &piece, clears, checked)
    if written < 0:
        return <int>written
    out.size = <uint32_t>written
    out.padding = 0
    return sizeof(fuse_write_out)


cdef ssize_t _write_checked(
    Thread *t, OpenFile *file, uint64_t fh, const Piece *piece, bint clears, bint checked
) noexcept nogil:
    """Write a piece where the options allow it, with the bits that the file is to have after it."""
    cdef struct_stat st
    cdef ssize_t written
    cdef int fd
    cdef int result = _look(t, file.fd, piece.flags, &st)
    if result < 0:
        return result
    if t.volume.options.seal_size and (
        piece.flags & O_APPEND or not _lies_within(piece, st.st_size)
    ):
        return -EPERM
    fd = _following(t, file, fh, piece.flags)
    if fd < 0:
        return fd
    if piece.offset < 0:  # to pwritev2(2), -1 is the descriptor's own position
        return -EINVAL
    if not st.st_mode & (S_ISUID | S_ISGID) and not t.again:
        return _write_piece(t, file, fd, piece, st.st_size)
    if piece.flags & O_APPEND:
        size_before(t, st.st_size)  # noted before `enter_content`, which notes a call, too
    result = enter_content(t, &st, clears, checked)
    if result < 0:
        return result
    written = _write_piece(t, file, fd, piece, st.st_size)
    leave_content(t, &st, clears, file.nodeid)
    return written


cdef int _look(Thread *t, int fd, int flags, struct_stat *st) noexcept nogil:
    """Get the attributes of a file that is to be written to with these flags.

    Of one without suid and sgid bits the mode may be enough, and for an append the size.
    """
    cdef const Options *o = &t.volume.options
    cdef unsigned int mask = STATX_MODE | (STATX_SIZE if flags & O_APPEND else 0)
    cdef struct_statx found
    if not o.seal_size and not o.statx_first:
        if statx(fd, b"", AT_EMPTY_PATH, mask, &found) < 0:
            return -errno
        st.st_mode = found.stx_mode
        st.st_size = <off_t>found.stx_size
        if not found.stx_mode & (S_ISUID | S_ISGID):
            return 0
    return -errno if fstat(fd, st) < 0 else 0


cdef bint _lies_within(const Piece *piece, int64_t size) noexcept nogil:
    """Return whether a piece ends at or before this size of a file."""
    return 0 <= piece.offset <= size and piece.size <= <size_t>(size - piece.offset)


cdef ssize_t _write_piece(
    Thread *t, OpenFile *file, int fd, const Piece *piece, int64_t size
) noexcept nogil:
    """Write through a descriptor of a file of this size; return the bytes written, or -errno."""
    if piece.flags & O_APPEND:
        return _append(t, file, fd, piece, size)
    return _write_aligned(t, file, fd, piece)


cdef ssize_t _append(
    Thread *t, OpenFile *file, int fd, const Piece *piece, int64_t size
) noexcept nogil:
    """Append what the dead worker has not."""
    cdef int64_t before = size_before(t, size)
    cdef Piece rest = piece[0]
    cdef ssize_t written
    cdef ssize_t done = appended(t, file.fd, before, size, piece.data, piece.size)
    if done < 0:
        return done
    rest.data += done
    rest.size -= <size_t>done
    if not rest.size and done:
        if piece.flags & O_DSYNC and fsync(file.fd) < 0:
            return -errno
        return done
    written = _write_aligned(t, file, fd, &rest)
    if written < 0:
        return done if done else written
    return done + written


cdef ssize_t _write_aligned(
    Thread *t, OpenFile *file, int fd, const Piece *piece
) noexcept nogil:
    """Write, without O_DIRECT if the last piece of a file is not aligned."""
    cdef struct_stat st
    cdef ssize_t written = _write_at(t, file, fd, piece)
    if written != -EINVAL or not piece.flags & O_DIRECT:
        return written
    if fstat(fd, &st) < 0:
        return -errno
    if piece.offset > st.st_size or piece.offset + <off_t>piece.size != st.st_size:
        return written
    fd = _following(t, file, file.fh, piece.flags & ~O_DIRECT)
    return fd if fd < 0 else _write_at(t, file, fd, piece)


cdef ssize_t _write_at(
    Thread *t, const OpenFile *file, int fd, const Piece *piece
) noexcept nogil:
    """Write as the file's opener and the flags of the piece say; return the bytes, or -errno."""
    cdef bint entered = enter_unreserved(t, file.kind & UNRESERVED)
    cdef ssize_t written = _write_bytes(fd, piece)
    step(t, MADE)
    leave_unreserved(t, entered)
    return written


cdef ssize_t _write_bytes(int fd, const Piece *piece) noexcept nogil:
    cdef int asked = RWF_APPEND if piece.flags & O_APPEND else 0
    cdef iovec part
    cdef ssize_t written
    if piece.flags & O_SYNC == O_SYNC:
        asked |= RWF_SYNC
    elif piece.flags & O_DSYNC:
        asked |= RWF_DSYNC
    part.iov_base = <void *>piece.data
    part.iov_len = piece.size
    while True:
        if asked:
            written = pwritev2(fd, &part, 1, piece.offset, asked)
        else:
            written = pwrite(fd, piece.data, piece.size, piece.offset)
        if written >= 0:
            return written
        if errno != EINTR:
            return -errno


cdef int _following(Thread *t, OpenFile *file, uint64_t fh, int flags) noexcept nogil:
    """Return the descriptor of a file that has O_DIRECT as these flags have it, or -errno.

    A file without fh has one alone.
    """
    cdef bint direct = request_flags(&t.volume.options, flags) & O_DIRECT != 0
    cdef int twin
    if not fh or direct == (file.kind & DIRECT != 0):
        return file.fd
    twin = load32(&file.twin, ACQUIRE)
    return twin if twin >= 0 else _open_twin(t, file)


cdef int _open_twin(Thread *t, OpenFile *file) noexcept nogil:
    """Open the file again with the other choice of O_DIRECT; return the descriptor or -errno.

    Two threads at once open two, and the first one stays.
    """
    cdef char path[PATH_ROOM]
    cdef int flags = fcntl(file.fd, F_GETFL)
    cdef int fd
    if flags < 0:
        return -errno
    path_of(t.volume, file.fd, path)
    flags = (flags & (O_ACCMODE | O_SYNC | O_NOATIME | O_DIRECT)) ^ O_DIRECT
    fd = open_path(path, flags | O_CLOEXEC)
    if fd < 0 or set_twin(file, fd):
        return fd
    close(fd)
    return load32(&file.twin, ACQUIRE)

"""Parts of open files: allocated, found, copied.

The host's file systems check offsets only as far as a signed number goes, so that the largest ones
are refused here. With `seal_size` nothing changes the size of a file.

A change of content takes the file's suid and sgid bits away: with FUSE_HANDLE_KILLPRIV_V2 the
kernel leaves that to the worker, for each caller but root (`clears`). The kernel has asked by a
SETATTR about a file that is open; for one that is not (no_open) the caller of the request counts.

**Served again** (repeated.pyx). The calls may be made twice, except where a range is shifted: the
size is noted before, and tells if the range has been. A copy may answer another length then, as the
host may copy fewer bytes at any time.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from passthrough.core.abi cimport (
    FUSE_HANDLE_KILLPRIV_V2, fuse_copy_file_range_in, fuse_copy_file_range_out, fuse_fallocate_in,
    fuse_in_header, fuse_lseek_in, fuse_lseek_out, fuse_write_out,
)
from passthrough.core.backing cimport passes
from passthrough.core.files cimport UNRESERVED, file_of
from passthrough.core.identity cimport (
    enter_content, enter_unreserved, leave_content, leave_unreserved,
)
from passthrough.core.layout cimport OpenFile
from passthrough.core.libc cimport (
    EFBIG, EINTR, EINVAL, ENOSYS, ENXIO, EPERM, FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE, SEEK_DATA, SEEK_HOLE, copy_file_range, errno, fallocate, fstat, lseek,
    off_t, ssize_t, struct_stat,
)
from passthrough.core.repeated cimport size_before
from passthrough.core.state cimport Thread, about_to_block, uses
from passthrough.core.steps cimport MADE, step

cdef extern from "<stdint.h>" nogil:
    const uint64_t LAST_BYTE "(UINT64_C(0x7FFFFFFFFFFFFFFF))"

cdef enum:
    MAX_WRITE = 1 << 20  # bytes of one WRITE
    ROOT_USER = 0
    SHIFTING = FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE


cdef int do_fallocate(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """Allocate, free, zero or shift a range, FALLOC_FL_* in `mode`, fallocate(2)."""
    cdef const fuse_fallocate_in *fixed = <const fuse_fallocate_in *>arg
    cdef bint clears = _clears(t, h)
    cdef bint entered
    cdef OpenFile *file = NULL
    cdef struct_stat st
    cdef int error
    about_to_block(t)
    error = file_of(t, fixed.fh, h.nodeid, &file)
    if error:
        return error
    if not fixed.length or fixed.length > LAST_BYTE or fixed.offset > LAST_BYTE:
        return -EINVAL
    if fixed.offset + fixed.length > LAST_BYTE:
        return -EFBIG
    if fstat(file.fd, &st):
        return -errno
    if t.volume.options.seal_size and _resizes(fixed, &st):
        return -EPERM
    if fixed.mode & SHIFTING:
        size_before(t, st.st_size)  # noted before `enter_content`, which notes a call, too
    error = enter_content(t, &st, clears, fixed.fh != 0)
    if error:
        return error
    entered = enter_unreserved(t, file.kind & UNRESERVED)
    if not fixed.mode & SHIFTING or not _is_shifted(t, fixed, st.st_size):
        error = _allocate(file.fd, fixed)
    step(t, MADE)
    leave_unreserved(t, entered)
    leave_content(t, &st, clears, file.nodeid)
    return error


cdef inline bint _resizes(const fuse_fallocate_in *fixed, const struct_stat *st) noexcept nogil:
    if fixed.mode & SHIFTING:
        return True
    return (
        fixed.offset + fixed.length > <uint64_t>st.st_size
        and not fixed.mode & FALLOC_FL_KEEP_SIZE
    )


cdef bint _is_shifted(Thread *t, const fuse_fallocate_in *fixed, int64_t size) noexcept nogil:
    """Return whether the dead worker has shifted the range; otherwise note the size."""
    cdef int64_t before = size_before(t, size)
    cdef int64_t length = <int64_t>fixed.length
    return size == before + (length if fixed.mode & FALLOC_FL_INSERT_RANGE else -length)


cdef int _allocate(int fd, const fuse_fallocate_in *fixed) noexcept nogil:
    """Make the system call, again after a signal, except where a part would be shifted twice."""
    cdef int error
    while fallocate(fd, <int>fixed.mode, <off_t>fixed.offset, <off_t>fixed.length):
        error = errno
        if error != EINTR or fixed.mode & SHIFTING:
            return -error
    return 0


cdef int do_lseek(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Find where data, or a hole, begins at or after an offset, lseek(2).

    Every other place the kernel knows by itself. With ENOSYS it answers these two as well: with
    `writeback` only the kernel knows the size of a file.
    """
    cdef const fuse_lseek_in *fixed = <const fuse_lseek_in *>arg
    cdef OpenFile *file = NULL
    cdef int64_t found
    cdef int error
    if t.volume.options.writeback:
        return -ENOSYS  # once: the kernel does not ask again
    if fixed.whence != SEEK_DATA and fixed.whence != SEEK_HOLE:
        return -EINVAL
    if fixed.offset > LAST_BYTE:
        return -ENXIO
    error = file_of(t, fixed.fh, h.nodeid, &file)
    if error:
        return error
    if passes(t, file.nodeid):
        # The call moves the descriptor, which has no effect: reads and writes name their offset.
        found = lseek(file.fd, <off_t>fixed.offset, <int>fixed.whence)
        if found < 0:
            found = -errno
    else:
        found = _seek_in_data(file.fd, <int64_t>fixed.offset, <int>fixed.whence)
    if found < 0:
        return <int>found
    (<fuse_lseek_out *>t.out).offset = <uint64_t>found
    return sizeof(fuse_lseek_out)


cdef int64_t _seek_in_data(int fd, int64_t offset, int whence) noexcept nogil:
    """Return the place in a file that is all data, or -errno.

    A file that does not pass through may have pages that the kernel has not yet written back. The
    host has holes there, and cp(1) would copy them as zeros.
    """
    cdef struct_stat st
    if fstat(fd, &st):
        return -errno
    if offset >= st.st_size:
        return -ENXIO
    return offset if whence == SEEK_DATA else st.st_size


cdef int do_copy_file_range(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """Copy from one open file to another one; the older request, with 32 bits in its answer."""
    cdef fuse_write_out *out = <fuse_write_out *>t.out
    cdef uint64_t copied = 0
    cdef int error = _copy(t, h, <const fuse_copy_file_range_in *>arg, 0xFFFF_FFFFU, &copied)
    if error:
        return error
    out.size = <uint32_t>copied
    out.padding = 0
    return sizeof(fuse_write_out)


cdef int do_copy_file_range_64(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """Copy from one open file to another one."""
    cdef uint64_t copied = 0
    cdef int error = _copy(t, h, <const fuse_copy_file_range_in *>arg, LAST_BYTE, &copied)
    if error:
        return error
    (<fuse_copy_file_range_out *>t.out).bytes_copied = copied
    return sizeof(fuse_copy_file_range_out)


cdef int _copy(
    Thread *t, const fuse_in_header *h, const fuse_copy_file_range_in *fixed, uint64_t most,
    uint64_t *copied
) noexcept nogil:
    """Copy within the host, or share the space, copy_file_range(2).

    The host copies fewer bytes than asked for at the end of the source, and whenever it likes.
    """
    cdef bint clears = _clears(t, h)
    cdef bint entered
    cdef uint64_t length = min(fixed.len, most)
    cdef uint64_t last = max(fixed.off_in, fixed.off_out)
    cdef OpenFile *source = NULL
    cdef OpenFile *target = NULL
    cdef struct_stat st
    cdef int error
    if fixed.flags:
        return -EINVAL
    # The kernel has cut the length to that of the file. READ and WRITE of as much block no less.
    if length > MAX_WRITE:
        about_to_block(t)
    error = file_of(t, fixed.fh_in, h.nodeid, &source)
    if not error:
        error = file_of(t, fixed.fh_out, fixed.nodeid_out, &target)
    if error:
        return error
    if last > LAST_BYTE:
        return -EINVAL
    length = min(length, LAST_BYTE - last)
    if fstat(target.fd, &st):
        return -errno
    if t.volume.options.seal_size:
        error = _check_size(fixed, source.fd, &st, length)
    if not error:
        error = enter_content(t, &st, clears, fixed.fh_out != 0)
    if error:
        return error
    entered = enter_unreserved(t, target.kind & UNRESERVED)
    error = _copy_bytes(source.fd, target.fd, fixed, length, copied)
    step(t, MADE)
    leave_unreserved(t, entered)
    leave_content(t, &st, clears, target.nodeid)
    return error


cdef int _check_size(
    const fuse_copy_file_range_in *fixed, int source_fd, const struct_stat *target, uint64_t length
) noexcept nogil:
    """Refuse a copy that makes the target longer."""
    cdef struct_stat source
    cdef int64_t copied
    if fstat(source_fd, &source):
        return -errno
    copied = min(<int64_t>length, <int64_t>source.st_size - <int64_t>fixed.off_in)
    if copied > 0 and fixed.off_out + <uint64_t>copied > <uint64_t>target.st_size:
        return -EPERM
    return 0


cdef int _copy_bytes(
    int source_fd, int target_fd, const fuse_copy_file_range_in *fixed, uint64_t length,
    uint64_t *copied
) noexcept nogil:
    cdef off_t off_in = <off_t>fixed.off_in
    cdef off_t off_out = <off_t>fixed.off_out
    cdef ssize_t result
    cdef int error
    while True:
        result = copy_file_range(source_fd, &off_in, target_fd, &off_out, length, 0)
        if result >= 0:
            copied[0] = <uint64_t>result
            return 0
        error = errno
        if error != EINTR:
            return -error


cdef inline bint _clears(const Thread *t, const fuse_in_header *h) noexcept nogil:
    """Return whether the file loses its suid and sgid bits."""
    return uses(t, FUSE_HANDLE_KILLPRIV_V2) and h.uid != ROOT_USER

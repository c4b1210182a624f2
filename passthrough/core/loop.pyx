"""Finds the function of an opcode, and turns its result into a reply.

One table has a row for each opcode that is served. Anything else is ENOSYS, which the kernel
remembers: it does not send such a request again. The row's checks come before the function: the
length of the fixed structure, a read-only volume, and the ids with which the function acts.

A malformed request, by linux/fuse.h, gets EIO, and never ends the mount.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from passthrough.core cimport abi
from passthrough.core.abi cimport fuse_in_header, fuse_out_header
from passthrough.core.attributes cimport (
    do_access, do_getattr, do_statfs, do_statx, do_syncfs,
)
from passthrough.core.counters cimport count, count_reply, nanoseconds
from passthrough.core.data cimport do_read, do_write
from passthrough.core.directories cimport (
    do_fsyncdir, do_opendir, do_readdir, do_readdirplus, do_releasedir,
)
from passthrough.core.entries cimport (
    do_batch_forget, do_forget, do_link, do_lookup, do_mkdir, do_mknod, do_readlink, do_rmdir,
    do_symlink, do_unlink,
)
from passthrough.core.files cimport do_flush, do_fsync, do_release
from passthrough.core.flags cimport do_ioctl
from passthrough.core.inodes cimport end_refusal, note_refusal
from passthrough.core.journal cimport begin_request
from passthrough.core.libc cimport EIO, ENOSYS, EROFS, ESTALE
from passthrough.core.locks cimport do_getlk, do_interrupt, do_setlk, do_setlkw
from passthrough.core.opens cimport do_create, do_open, do_tmpfile
from passthrough.core.ranges cimport (
    do_copy_file_range, do_copy_file_range_64, do_fallocate, do_lseek,
)
from passthrough.core.rare cimport end_process, report, serve_in_python
from passthrough.core.renames cimport do_rename, do_rename2
from passthrough.core.setattr cimport do_setattr
from passthrough.core.squash cimport (
    ACTS_AS_CALLER, ACTS_AS_WORKER, ACTS_BY_ITSELF, ACTS_ON_TWO, serve_squashed,
)
from passthrough.core.state cimport (
    NO_ANSWER, REPORT_MALFORMED, REPORT_NO_HEADER, SQUASH_NONE, Handler, Thread,
)
from passthrough.core.steps cimport BEGUN, SERVED, step
from passthrough.core.xattrs cimport do_getxattr, do_listxattr, do_removexattr, do_setxattr

cdef enum:
    EXTENSION_UNIT = 8  # bytes, of fuse_in_header.total_extlen
    LAST_ERRNO = 511  # the kernel takes no larger one, fs/fuse/dev.c
    CHANGES = 1
    SILENT = 2  # the protocol has no answer
    BY_PATH = 4  # beside CHANGES: the kernel repeats the caller's call after ESTALE


cdef struct Row:
    Handler handler
    uint16_t fixed  # bytes of the structure that the request begins with
    uint8_t flags
    uint8_t acts  # squash.Acts


cdef Row rows[abi.FUSE_OPCODES]


cdef uint32_t serve(Thread *t, uint32_t received) noexcept nogil:
    """Serve the request of `received` bytes at `t.request`.

    Return the length of the reply, which begins OUT_HEADER bytes before `t.out`; 0 if the protocol
    has none.
    """
    if received < sizeof(fuse_in_header):
        report(t.volume, REPORT_NO_HEADER, received, NULL)
        return 0
    if not t.again:
        begin_request(t.journal, t.request.unique)
    return serve_begun(t, received)


cdef uint32_t serve_begun(Thread *t, uint32_t received) noexcept nogil:
    """Serve a request of which the journal may say how far a predecessor came, as `serve`."""
    cdef const fuse_in_header *h = t.request
    cdef const Row *row
    cdef uint64_t began = nanoseconds()
    cdef uint32_t length
    cdef int result
    step(t, BEGUN)
    length = h.total_extlen * EXTENSION_UNIT + <uint32_t>sizeof(fuse_in_header)
    row = &rows[h.opcode if h.opcode < abi.FUSE_OPCODES else 0]
    if h.len != received or received < length + row.fixed:
        result = -EIO
    elif row.handler == NULL:
        result = -ENOSYS
    elif row.flags & CHANGES and t.volume.options.readonly:
        result = -EROFS
    else:
        result = _handle(t, row, h, received - length)
    step(t, SERVED)
    t.served += 1
    if row.flags & (CHANGES | BY_PATH):
        if result == -ESTALE:
            note_refusal(t.volume.tables, h.pid)
        else:
            end_refusal(t.volume.tables, h.pid)
    if result != NO_ANSWER and not row.flags & SILENT:
        length = _reply(t, h.unique, &result)
    else:
        length = 0
        if result < 0 and result != NO_ANSWER:
            report(t.volume, REPORT_MALFORMED, h.opcode, NULL)
    if result > 0:
        count_reply(t.row, h.opcode, t.out, result)
    count(t.row, h.opcode, -result if NO_ANSWER < result < 0 else 0, began)
    return length


cdef bint is_silent(const fuse_in_header *h) noexcept nogil:
    """Return whether the protocol has no answer to a request."""
    return h.opcode < abi.FUSE_OPCODES and rows[h.opcode].flags & SILENT != 0


cdef uint32_t refuse(Thread *t) noexcept nogil:
    """Answer a request by EIO without serving it; return as `serve`."""
    cdef int result = -EIO
    count(t.row, t.request.opcode, EIO, nanoseconds())
    return 0 if is_silent(t.request) else _reply(t, t.request.unique, &result)


cdef int _handle(
    Thread *t, const Row *row, const fuse_in_header *h, uint32_t length
) noexcept nogil:
    cdef const char *arg = <const char *>(h + 1)
    cdef int result
    if t.volume.options.squash == SQUASH_NONE:
        result = row.handler(t, h, arg, length)
    else:
        result = serve_squashed(t, row.handler, row.acts, h, arg, length)
    if t.powerless or t.reduced or t.fs.uid or t.fs.gid:
        end_process(t.volume, b"has not taken its own ids and capabilities again")
    return result


cdef uint32_t _reply(Thread *t, uint64_t unique, int *result) noexcept nogil:
    """Make the header of a reply; a result that cannot be becomes -EIO."""
    cdef fuse_out_header *out = <fuse_out_header *>(t.out - OUT_HEADER)
    if result[0] < -LAST_ERRNO or result[0] > <int>t.out_size:
        result[0] = -EIO
    out.len = OUT_HEADER + <uint32_t>max(result[0], 0)
    out.error = min(result[0], 0)
    out.unique = unique
    return out.len


cdef int do_destroy(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Answer the last request of a connection."""
    return 0


cdef int do_notify_reply(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """Take the answer to a RETRIEVE, which only had to wake a thread."""
    return NO_ANSWER


cdef void _row(
    int opcode, Handler handler, size_t fixed=0, int flags=0, int acts=ACTS_AS_WORKER
) noexcept:
    rows[opcode].handler = handler
    rows[opcode].fixed = <uint16_t>fixed
    rows[opcode].flags = <uint8_t>flags
    rows[opcode].acts = <uint8_t>acts


cdef void _names() noexcept:
    cdef int caller = ACTS_AS_CALLER
    _row(abi.FUSE_LOOKUP, do_lookup, 0, 0, caller)
    _row(abi.FUSE_FORGET, do_forget, sizeof(abi.fuse_forget_in), SILENT)
    _row(abi.FUSE_BATCH_FORGET, do_batch_forget, sizeof(abi.fuse_batch_forget_in), SILENT)
    _row(abi.FUSE_MKNOD, do_mknod, sizeof(abi.fuse_mknod_in), CHANGES, caller)
    _row(abi.FUSE_MKDIR, do_mkdir, sizeof(abi.fuse_mkdir_in), CHANGES, caller)
    _row(abi.FUSE_SYMLINK, do_symlink, 0, CHANGES, caller)
    _row(abi.FUSE_LINK, do_link, sizeof(abi.fuse_link_in), CHANGES, ACTS_ON_TWO)
    _row(abi.FUSE_UNLINK, do_unlink, 0, CHANGES, caller)
    _row(abi.FUSE_RMDIR, do_rmdir, 0, CHANGES, caller)
    _row(abi.FUSE_RENAME, do_rename, sizeof(abi.fuse_rename_in), CHANGES, ACTS_BY_ITSELF)
    _row(abi.FUSE_RENAME2, do_rename2, sizeof(abi.fuse_rename2_in), CHANGES, ACTS_BY_ITSELF)
    _row(abi.FUSE_READLINK, do_readlink, 0, 0, caller)


cdef void _attributes() noexcept:
    cdef int caller = ACTS_AS_CALLER
    _row(abi.FUSE_GETATTR, do_getattr, sizeof(abi.fuse_getattr_in))
    _row(abi.FUSE_SETATTR, do_setattr, sizeof(abi.fuse_setattr_in), CHANGES, ACTS_BY_ITSELF)
    _row(abi.FUSE_STATX, do_statx, sizeof(abi.fuse_statx_in))
    _row(abi.FUSE_STATFS, do_statfs)
    _row(abi.FUSE_ACCESS, do_access, sizeof(abi.fuse_access_in), 0, caller)
    _row(abi.FUSE_SYNCFS, do_syncfs, sizeof(abi.fuse_syncfs_in))
    _row(abi.FUSE_GETXATTR, do_getxattr, sizeof(abi.fuse_getxattr_in), 0, caller)
    _row(abi.FUSE_SETXATTR, do_setxattr, sizeof(abi.fuse_setxattr_in), CHANGES, caller)
    _row(abi.FUSE_LISTXATTR, do_listxattr, sizeof(abi.fuse_getxattr_in), 0, caller)
    _row(abi.FUSE_REMOVEXATTR, do_removexattr, 0, CHANGES, caller)


cdef void _files() noexcept:
    cdef int caller = ACTS_AS_CALLER
    _row(abi.FUSE_OPEN, do_open, sizeof(abi.fuse_open_in), BY_PATH, caller)
    _row(abi.FUSE_CREATE, do_create, sizeof(abi.fuse_create_in), CHANGES, caller)
    _row(abi.FUSE_TMPFILE, do_tmpfile, sizeof(abi.fuse_create_in), CHANGES, caller)
    _row(abi.FUSE_READ, do_read, sizeof(abi.fuse_read_in))
    _row(abi.FUSE_WRITE, do_write, sizeof(abi.fuse_write_in), CHANGES)
    _row(abi.FUSE_FLUSH, do_flush, sizeof(abi.fuse_flush_in))
    _row(abi.FUSE_FSYNC, do_fsync, sizeof(abi.fuse_fsync_in))
    _row(abi.FUSE_RELEASE, do_release, sizeof(abi.fuse_release_in))
    _row(abi.FUSE_FALLOCATE, do_fallocate, sizeof(abi.fuse_fallocate_in), CHANGES)
    _row(abi.FUSE_LSEEK, do_lseek, sizeof(abi.fuse_lseek_in))
    _row(
        abi.FUSE_COPY_FILE_RANGE, do_copy_file_range, sizeof(abi.fuse_copy_file_range_in),
        CHANGES,
    )
    _row(
        abi.FUSE_COPY_FILE_RANGE_64, do_copy_file_range_64, sizeof(abi.fuse_copy_file_range_in),
        CHANGES,
    )
    _row(abi.FUSE_IOCTL, do_ioctl, sizeof(abi.fuse_ioctl_in), 0, ACTS_BY_ITSELF)


cdef void _others() noexcept:
    _row(abi.FUSE_OPENDIR, do_opendir, sizeof(abi.fuse_open_in), 0, ACTS_AS_CALLER)
    _row(abi.FUSE_READDIR, do_readdir, sizeof(abi.fuse_read_in))
    _row(abi.FUSE_READDIRPLUS, do_readdirplus, sizeof(abi.fuse_read_in))
    _row(abi.FUSE_FSYNCDIR, do_fsyncdir, sizeof(abi.fuse_fsync_in))
    _row(abi.FUSE_RELEASEDIR, do_releasedir, sizeof(abi.fuse_release_in))
    _row(abi.FUSE_GETLK, do_getlk, sizeof(abi.fuse_lk_in))
    _row(abi.FUSE_SETLK, do_setlk, sizeof(abi.fuse_lk_in))
    _row(abi.FUSE_SETLKW, do_setlkw, sizeof(abi.fuse_lk_in))
    _row(abi.FUSE_INTERRUPT, do_interrupt, sizeof(abi.fuse_interrupt_in), SILENT)
    _row(abi.FUSE_INIT, serve_in_python, sizeof(abi.fuse_init_in))
    _row(abi.FUSE_DESTROY, do_destroy)
    _row(abi.FUSE_NOTIFY_REPLY, do_notify_reply, 0, SILENT)


cdef Handler replace(int opcode, Handler handler) noexcept:
    """Serve an opcode by another function, in a test; return the one before."""
    cdef Handler before = rows[opcode].handler
    rows[opcode].handler = handler
    return before


def opcodes():
    """Return the opcodes that are served."""
    return [opcode for opcode in range(abi.FUSE_OPCODES) if rows[opcode].handler != NULL]


_names()
_attributes()
_files()
_others()

"""RENAME and RENAME2, rename(2).

A rename acts on names, as a removal does: see entries.pyx for `check_named`, and for the descriptor
that a file held by handle leaves behind. No caller can move a file with an unmapped owner to the
name after the check, because the check refuses that move as well. With RENAME_WHITEOUT the host
creates a device node at the old name, so that the thread acts as the caller.

**Served again** (repeated.pyx). If the old name is gone, the rename is done if the new name leads
to a file that has changed since the note of the call. If the old name leads to a file born later,
another process has made it, and it stays. An exchange, and a rename that leaves a whiteout, would
succeed twice: the files of both names are noted before, and compared.

On a squashed volume the host decides by the ids of the caller. The sticky bit concerns the owner of
a file that moves, and a directory that gets another parent is written to itself. So a caller may
need the groups of both files, beside those of both directories.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from passthrough.core.abi cimport fuse_in_header, fuse_rename2_in, fuse_rename_in
from passthrough.core.entries cimport two_texts
from passthrough.core.identity cimport check_named, check_node, enter_caller, leave_caller
from passthrough.core.inodes cimport (
    Loan, borrow_node, changing, give_back, is_stale_fd,
)
from passthrough.core.layout cimport Inode
from passthrough.core.libc cimport (
    EINVAL, EIO, ENOENT, ESTALE, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, S_IFCHR, close,
    errno, fstat, renameat2, struct_stat,
)
from passthrough.core.names cimport (
    Removal, begin_removal, check_name, end_removal, open_same_mount,
)
from passthrough.core.notify cimport attributes_changed
from passthrough.core.repeated cimport is_another, was_moved, were_changed
from passthrough.core.squash cimport TRY_EITHER, as_caller
from passthrough.core.state cimport SQUASH_NONE, Thread
from passthrough.core.steps cimport MADE, note_call, step

cdef enum:
    ANY_FLAGS = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT


# One rename, with both texts in the request.
cdef struct Renaming:
    uint64_t parent
    uint64_t new_parent
    const char *name
    const char *new_name
    uint32_t flags


cdef int do_rename(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Rename without flags."""
    cdef uint64_t new_parent = (<const fuse_rename_in *>arg).newdir
    return _rename(t, h.nodeid, new_parent, 0, arg, n, sizeof(fuse_rename_in))


cdef int do_rename2(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    """Rename with RENAME_* flags."""
    cdef const fuse_rename2_in *fixed = <const fuse_rename2_in *>arg
    return _rename(t, h.nodeid, fixed.newdir, fixed.flags, arg, n, sizeof(fuse_rename2_in))


cdef int _rename(
    Thread *t, uint64_t parent, uint64_t new_parent, uint32_t flags,
    const char *arg, uint32_t n, uint32_t at
) noexcept nogil:
    cdef Renaming words
    cdef int error
    memset(&words, 0, sizeof(words))
    words.parent = parent
    words.new_parent = new_parent
    words.flags = flags
    if two_texts(arg, n, at, &words.name, &words.new_name):
        return -EIO
    if t.volume.options.squash == SQUASH_NONE:
        error = _rename_as(t, &words)
    else:
        error = _rename_squashed(t, &words)
    if error and flags & RENAME_WHITEOUT:
        # ext4 enters the whiteout first and takes it out again when the rename is refused: the
        # times of the directories change, and the kernel forgets them on success only.
        attributes_changed(t.volume, parent)
        attributes_changed(t.volume, new_parent)
    return error


cdef int _rename_squashed(Thread *t, Renaming *words) noexcept nogil:
    """Rename as the caller; a directory that gets another parent is written to itself."""
    cdef unsigned long long nodeids[2]
    cdef uint32_t groups[2]
    cdef int count = 0
    if check_name(words.name) or check_name(words.new_name):
        return -EINVAL
    nodeids[0] = words.parent
    nodeids[1] = words.new_parent
    if _group_of(t, words.parent, words.name, &groups[count]):
        count += 1
    if _group_of(t, words.new_parent, words.new_name, &groups[count]):
        count += 1
    return as_caller(t, &_rename_as, words, nodeids, 2, groups, count, TRY_EITHER)


cdef bint _group_of(Thread *t, uint64_t parent, const char *name, uint32_t *gid) noexcept nogil:
    """Find the group of a name, if the name leads to a file on the directory's mount."""
    cdef Inode *directory = NULL
    cdef Loan loan
    cdef struct_stat st
    cdef bint found
    cdef int fd
    if borrow_node(t, parent, &directory, &loan):
        return False
    fd = open_same_mount(loan.fd, name)
    give_back(t, &loan)
    if fd < 0:
        return False
    found = not fstat(fd, &st)
    close(fd)
    if found:
        gid[0] = st.st_gid
    return found


cdef int _rename_as(Thread *t, void *data) noexcept nogil:
    """Rename as the thread acts now; a squash.Operation."""
    cdef Renaming *words = <Renaming *>data
    cdef Inode *directory = NULL
    cdef Inode *new_directory = NULL
    cdef Loan loan, new_loan
    cdef int error = check_name(words.name)
    if not error:
        error = check_name(words.new_name)
    if error:
        return error
    if words.flags & ~<uint32_t>ANY_FLAGS:
        return -EINVAL
    if words.flags & RENAME_WHITEOUT:
        error = check_node(t.volume, S_IFCHR)
        if error:
            return error
    error = changing(t, words.new_parent, &new_directory, &new_loan)
    if error:
        return error
    error = changing(t, words.parent, &directory, &loan)
    if not error:
        error = check_named(t, loan.fd, words.name)
        if not error:
            error = check_named(t, new_loan.fd, words.new_name)
        if not error:
            error = _move_once(t, words, directory, loan.fd, new_directory, new_loan.fd)
        if error == -ENOENT and (
            is_stale_fd(t, directory, loan.fd) or is_stale_fd(t, new_directory, new_loan.fd)
        ):
            error = -ESTALE
        give_back(t, &loan)
    give_back(t, &new_loan)
    return error


cdef int _move_once(
    Thread *t, const Renaming *words, const Inode *directory, int fd, const Inode *new_directory,
    int new_fd
) noexcept nogil:
    """Move the file unless the dead worker has moved it."""
    cdef int error
    if words.flags & (RENAME_EXCHANGE | RENAME_WHITEOUT):
        if were_changed(t, fd, words.name, new_fd, words.new_name, words.flags):
            return 0
        return _move(t, words, fd, new_directory, new_fd)
    if is_another(t, directory, fd, words.name):
        return 0
    error = _move(t, words, fd, new_directory, new_fd)
    if error == -ENOENT and was_moved(t, new_directory, new_fd, words.new_name):
        return 0
    return error


cdef int _move(
    Thread *t, const Renaming *words, int fd, const Inode *new_directory, int new_fd
) noexcept nogil:
    """Make the system call; a whiteout is created, and belongs to the caller."""
    cdef Removal removal
    cdef bint creating = words.flags & RENAME_WHITEOUT != 0
    # With the other flags no file loses a name, or the call fails.
    cdef bint removing = not words.flags & (RENAME_NOREPLACE | RENAME_EXCHANGE)
    cdef int error = 0
    if creating:
        error = enter_caller(t, 0)
        if error:
            return error
    if removing:
        begin_removal(t, new_directory, new_fd, words.new_name, &removal)
    note_call(t)
    if renameat2(fd, words.name, new_fd, words.new_name, words.flags):
        error = -errno
    step(t, MADE)
    if creating:
        leave_caller(t)
    if removing:
        end_removal(t, new_directory, &removal, not error)
    return error

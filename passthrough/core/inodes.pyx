"""Inodes in use: borrowed, changed, closed.

An O_PATH descriptor is quick to use, and keeps the host from giving the file's st_ino to another
file. But RLIMIT_NOFILE limits their number, and the kernel may know millions of inodes. A file
handle, name_to_handle_at(2), costs nothing while it is not used, and has to be opened for each use.
If another process deletes the file, opening says ESTALE. Handlers borrow a descriptor in either
case. recent.pyx keeps some open for a while.

With inode_file_handles=prefer, descriptors are kept for as many inodes as half of RLIMIT_NOFILE.
The other half is for open files and for a few dozen descriptors of the worker's own. Inodes that
come after are held by handle.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from passthrough.core.identity cimport check_change
from passthrough.core.layout cimport (
    ACQUIRE, REFUSALS, REFUSED, RELAXED, RELEASE, Refusal, load32, milliseconds, store16,
)
from passthrough.core.libc cimport (
    EINTR, ENOMEM, EROFS, ESTALE, O_CLOEXEC, O_PATH, S_IFDIR, close, errno, file_handle, fstat,
    open_by_handle_at, struct_stat,
)
from passthrough.core.powerless cimport enter_itself, leave_itself
from passthrough.core.recent cimport (
    drop_recent, find_recent, keep_recent, leave_recent, recent_close, recent_open,
)
from passthrough.core.slots cimport pthread_mutex_lock, pthread_mutex_unlock
from passthrough.core.state cimport Options, Thread, Volume
from passthrough.core.tables cimport (
    OPEN_TABLES, Gone, Inode, Tables, descriptor, handle_of, inode_of, mount_descriptor,
    mount_of, next_inode, next_open,
)

cdef enum:
    # Loan.kept: how `give_back` ends it; from 1 on, the use of a descriptor in recent.pyx
    OF_INODE = 0
    OWN = -1

cdef enum:
    REPEATED_MS = 10_000  # longer than it takes from ESTALE to the last request of the repetition


cdef int inodes_open(Volume *v) noexcept nogil:
    """Make what the volume's inodes need beside the tables."""
    return recent_open(v)


cdef void inodes_close(Volume *v) noexcept nogil:
    """Close the descriptors of all inodes, mounts, open files and directories in the tables."""
    cdef Tables *tables = v.tables
    cdef uint32_t index
    cdef int table
    recent_close(v)
    if tables == NULL:
        return
    for table in range(OPEN_TABLES):
        index = next_open(tables, table, 0)
        while index:
            _close_once(&tables.opens[table][index].twin)
            _close_once(&tables.opens[table][index].fd)
            index = next_open(tables, table, index)
    index = next_inode(tables, 0)
    while index:
        _close_once(&tables.inodes[index].fd)
        index = next_inode(tables, index)
    for index in range(tables.header.mounts):
        _close_once(&tables.mounts[index].fd)


cdef void _close_once(int32_t *fd) noexcept nogil:
    cdef int owned = fd[0]
    fd[0] = -1
    if owned >= 0:
        close(owned)


# Borrowed


cdef int borrow(Thread *t, const Inode *inode, Loan *loan) noexcept nogil:
    """Lend a descriptor of an inode, an O_PATH one; -ESTALE: the file is gone."""
    loan.kept = OF_INODE
    loan.fd = descriptor(inode)
    if loan.fd >= 0:
        return 0
    return _open(t, inode, loan)


cdef int _open(Thread *t, const Inode *inode, Loan *loan) noexcept nogil:
    cdef int fd
    loan.fd = find_recent(t.volume, inode.nodeid, &loan.kept)
    if loan.fd >= 0:
        return 0
    fd = _open_handle(t, inode)
    if fd < 0:
        return fd
    loan.fd = keep_recent(t.volume, inode.nodeid, fd, &loan.kept)
    if loan.fd >= 0:
        return 0
    loan.fd = fd
    loan.kept = OWN
    return 0


cdef int _open_handle(Thread *t, const Inode *inode) noexcept nogil:
    cdef Tables *tables = t.volume.tables
    cdef file_handle *handle = <file_handle *>handle_of(tables, inode)
    cdef int mount_fd = mount_descriptor(tables, inode)
    cdef bint entered = enter_itself(t)
    cdef int fd = -EINTR
    while fd == -EINTR:
        fd = open_by_handle_at(mount_fd, handle, O_PATH | O_CLOEXEC)
        if fd < 0:
            fd = -errno
    leave_itself(t, entered)
    # ENOMEM is what Linux says of a file that is being removed at this moment.
    return -ESTALE if fd == -ENOMEM else fd


cdef int borrow_node(Thread *t, uint64_t nodeid, Inode **inode, Loan *loan) noexcept nogil:
    """Lend a descriptor of the inode called `nodeid`."""
    inode[0] = inode_of(t.volume.tables, nodeid)
    if inode[0] == NULL:
        return -ESTALE
    return borrow(t, inode[0], loan)


cdef void give_back(Thread *t, Loan *loan) noexcept nogil:
    """End a loan, if there is one."""
    if loan.kept == OWN:
        close(loan.fd)
    elif loan.kept != OF_INODE:
        leave_recent(t.volume, loan.kept)
    loan.fd = -1
    loan.kept = OF_INODE


cdef int changing(Thread *t, uint64_t nodeid, Inode **inode, Loan *loan) noexcept nogil:
    """Lend an inode that is to be changed, or something in it.

    -EROFS: it is hidden. -EPERM: no range of the map has its owner.
    """
    cdef struct_stat st
    cdef int error
    inode[0] = inode_of(t.volume.tables, nodeid)
    if inode[0] == NULL:
        return -ESTALE
    if is_hidden(t.volume, inode[0]):
        return -EROFS
    error = borrow(t, inode[0], loan)
    if error or not t.volume.options.may_lack_owners:
        return error
    error = check_change(t.volume, &st) if fstat(loan.fd, &st) == 0 else -errno
    if error:
        give_back(t, loan)
    return error


cdef bint is_stale(Thread *t, Inode *inode, const struct_stat *st) noexcept nogil:
    """Return whether to answer ESTALE: the host has taken the last name of the file away.

    The kernel then looks the path up again, and sends the request for what it leads to now. A file
    that the kernel opens without a request may be open: then there may be no path.
    """
    cdef const Options *o = &t.volume.options
    if st.st_nlink or (o.no_opendir if inode.type == S_IFDIR else o.no_open):
        return False
    return _refuse_once(t.volume.tables, inode, t.request.pid, &t.journal.refused)


cdef bint _refuse_once(
    Tables *t, Inode *inode, uint32_t pid, uint32_t *noted
) noexcept nogil:
    """Return whether to refuse a file that has lost its last name: ESTALE.

    The kernel then looks the path up again, once. Served are: a request after a refusal of the same
    inode, as an O_PATH descriptor has no path; the repeated one, on an inode looked up since the
    caller got ESTALE, as a second one would reach it; and one for a file that a caller has open.
    If a predecessor has noted the refusal of this request, and died, the answer is the same.
    """
    cdef uint32_t told = <uint32_t>load32(<const int32_t *>&inode.told, RELAXED)
    cdef Refusal *last = &t.header.refusals[pid % REFUSALS]
    cdef uint32_t at
    cdef bint refused
    if load32(<const int32_t *>&inode.opens, RELAXED):
        return False
    pthread_mutex_lock(&t.mutex)
    refused = inode.flags & REFUSED != 0
    if load32(&last.pid, ACQUIRE) == <int32_t>pid:
        at = <uint32_t>load32(<const int32_t *>&last.at_ms, RELAXED)
        if milliseconds() - at < REPEATED_MS:
            refused = refused or <int32_t>(told - at) >= 0
    if noted[0]:
        refused = False
    if not refused:
        noted[0] = 1
    store16(&inode.flags, inode.flags | REFUSED, RELEASE)
    pthread_mutex_unlock(&t.mutex)
    return not refused


cdef bint is_stale_fd(Thread *t, Inode *inode, int fd) noexcept nogil:
    """As `is_stale`, of the inode behind a descriptor."""
    cdef struct_stat st
    return fstat(fd, &st) == 0 and is_stale(t, inode, &st)


cdef bint is_hidden(const Volume *v, const Inode *inode) noexcept nogil:
    """Return whether the inode is mounted below a source that shows no such thing."""
    return v.options.hide_submounts and mount_of(v.tables, inode) != 0


cdef int stat_inode(Thread *t, const Inode *inode, struct_stat *st) noexcept nogil:
    """Write the attributes as the host has them now."""
    cdef Loan loan
    cdef int error = borrow(t, inode, &loan)
    if error:
        return error
    if fstat(loan.fd, st) < 0:
        error = -errno
    give_back(t, &loan)
    return error


# Closed


cdef void close_gone(Thread *t, uint64_t nodeid, const Gone *gone) noexcept nogil:
    """Close what an inode has left that is gone, if it is: after FORGET, or the last RELEASE."""
    if not gone.gone:
        return
    drop_recent(t.volume, nodeid)
    if gone.fd >= 0:
        close(gone.fd)
    if gone.mount_fd >= 0:
        close(gone.mount_fd)

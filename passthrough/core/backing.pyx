"""FUSE passthrough: the host's files that the kernel reads and writes by itself.

The worker gives the kernel a host's file by an ioctl(2) on /dev/fuse, and gets an id. With that id
in the reply to OPEN, reads and writes of the open file come to the worker no more. The kernel
refuses a second id for one inode. It also refuses to mix opens that pass through with opens that
use its cache (fs/fuse/iomode.c). So the first open of an inode decides, and later ones share its id
until the last has gone (`open_add` in tables.pyx). No lock is held over the ioctl: two first opens
may make two ids, and the thread that came second closes its own.

The kernel opens the host's file anew for each open, with the caller's flags and without a check of
permissions. On the host's file it acts with the credentials of the thread that made the id. That
thread lacks CAP_FSETID, so each write takes suid and sgid bits away. Root keeps the bits otherwise,
so a file with such bits at its first open does not pass through.

On an inode that is open for writing, the kernel sends a SETATTR without changes before a write that
may not keep suid and sgid bits. The worker clears the bits on the host and answers the new mode, so
execve(2) never honours bits that a write has cleared. No such SETATTR comes before a write by root:
an inode that gets bits while it passes through is PRIVILEGED until its last release, and FLUSH has
the kernel ask for the attributes anew.

The worker serves a file that is opened with O_DIRECT, because the kernel would hold on to the flag
when it is taken off again. dd(1) does that before it writes a rest that fills no block. The id of
such a file is in force all the same. With allow_direct_io=false the worker opens no file with
O_DIRECT, but the kernel opens the host's file with it: only files with O_DIRECT pass through then.

`max_stack_depth` of INIT says how deep files of the source may lie. Deeper files are served by the
worker, with one line in the log. One file in memory is tried at the start: in a user namespace of
its own a process may mount, but make no id.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memset

from passthrough.core.abi cimport (
    FUSE_DEV_IOC_BACKING_CLOSE, FUSE_DEV_IOC_BACKING_OPEN, fuse_backing_map,
)
from passthrough.core.identity cimport (
    enter_clearing, enter_unreserved, leave_clearing, leave_unreserved,
)
from passthrough.core.journal cimport note_backing
from passthrough.core.layout cimport (
    ACQUIRE, PRIVILEGED, RELAXED, RELEASE, Inode, flags_of, inode_of, load32, store32,
)
from passthrough.core.libc cimport (
    ECONNABORTED, ENODEV, ENOENT, EPERM, F_GETFL, F_SETFL, MFD_CLOEXEC, O_DIRECT, S_ISGID,
    S_ISUID, close, errno, fcntl, fstat, ioctl, memfd_create,
)
from passthrough.core.rare cimport report
from passthrough.core.state cimport REPORT_BACKING, REPORT_UNTAKEN_ANSWER
from passthrough.core.tables cimport set_privileged


cdef int32_t open_backing(
    Thread *t, int fd, const struct_stat *st, bint unreserved
) noexcept nogil:
    """Return a backing id for the file behind an open descriptor, or 0: the worker serves it.

    `st` has the file's present attributes; NULL: they are asked for. The caller acts as itself.
    With `unreserved`, writes take no block that the host reserves for root.
    """
    cdef struct_stat found
    cdef int result
    if st == NULL:
        if fstat(fd, &found) < 0:
            return 0
        st = &found
    if st.st_mode & (S_ISUID | S_ISGID):
        return 0
    result = 0
    if not t.volume.options.allow_direct_io:
        result = _try_direct(fd)
    if result == 0:
        result = enter_clearing(t, st.st_gid)
    if result == 0:
        unreserved = enter_unreserved(t, unreserved)
        note_backing(t.journal, -1 - load32(&t.volume.tables.header.backing_high, ACQUIRE))
        result = _make_id(t.volume, fd)
        note_backing(t.journal, max(result, 0))
        leave_unreserved(t, unreserved)
        leave_clearing(t)
    if result < 0:
        report(t.volume, REPORT_BACKING, -result, NULL)
        return 0
    return result


cdef int _make_id(const Volume *v, int fd) noexcept nogil:
    """Return a backing id, or -errno.

    ELOOP: the file lies too deep. EPERM: the thread lacks CAP_SYS_ADMIN.
    """
    cdef fuse_backing_map asked
    cdef int device = load32(&v.device_fd, ACQUIRE)
    cdef int backing_id
    if device < 0:
        return -ENODEV
    memset(&asked, 0, sizeof(asked))
    asked.fd = fd
    backing_id = ioctl(device, FUSE_DEV_IOC_BACKING_OPEN, &asked)
    if backing_id < 0:
        return -errno
    # If two threads store, a successor may look at a few ids more.
    if backing_id > load32(&v.tables.header.backing_high, RELAXED):
        store32(&v.tables.header.backing_high, backing_id, RELEASE)
    return backing_id


cdef int _try_direct(int fd) noexcept nogil:
    """See whether a descriptor that has no other user yet can have O_DIRECT; EINVAL: it cannot."""
    cdef int flags = fcntl(fd, F_GETFL)
    if flags < 0 or fcntl(fd, F_SETFL, flags | O_DIRECT) < 0 or fcntl(fd, F_SETFL, flags) < 0:
        return -errno
    return 0


cdef void close_backing(Volume *v, int32_t backing_id) noexcept nogil:
    """Give a backing id up; open files that pass through go on. The caller acts as itself."""
    cdef uint32_t given = <uint32_t>backing_id
    cdef int device = load32(&v.device_fd, ACQUIRE)
    cdef int error
    if device < 0 or ioctl(device, FUSE_DEV_IOC_BACKING_CLOSE, &given) == 0:
        return
    error = errno
    if error == ENOENT or error == ENODEV or error == ECONNABORTED or error == EPERM:
        return  # the connection has ended, and its ids with it
    if load32(&v.device_fd, ACQUIRE) >= 0:
        report(v, REPORT_UNTAKEN_ANSWER, error, NULL)


cdef int try_backing(Thread *t) noexcept nogil:
    """Try whether a file in memory can pass through, once INIT is answered; return 0 or -errno."""
    cdef int result = new_backing(t.volume)
    if result >= 0:
        close_backing(t.volume, result)
        result = 0
    return result


cdef int new_backing(const Volume *v) noexcept nogil:
    """Return the id of a file in memory, or -errno."""
    cdef int fd = memfd_create(b"passfs-probe", MFD_CLOEXEC)
    cdef int result
    if fd < 0:
        return -errno
    result = _make_id(v, fd)
    close(fd)
    return result


cdef bint passes(Thread *t, uint64_t nodeid) noexcept nogil:
    """Return whether the inode is open, and its data do not come to the worker."""
    cdef const Inode *inode = inode_of(t.volume.tables, nodeid)
    return inode != NULL and load32(&inode.backing_id, ACQUIRE) != 0


cdef void note_privileges(Thread *t, uint64_t nodeid) noexcept nogil:
    """Note that an inode has been given suid or sgid bits, if it passes through."""
    if passes(t, nodeid):
        set_privileged(t.volume.tables, nodeid)


cdef bint may_have_lost_privileges(Thread *t, uint64_t nodeid) noexcept nogil:
    """Return whether the host may have taken bits away that the kernel remembers."""
    cdef const Inode *inode = inode_of(t.volume.tables, nodeid)
    return inode != NULL and flags_of(inode) & PRIVILEGED != 0

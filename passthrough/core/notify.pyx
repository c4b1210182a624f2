"""Notifications: messages to the kernel that answer no request, such as cache invalidations.

To drop cached pages, the kernel waits until requests that read or write them are answered. So a
thread may call `drop_pages` only if another thread serves meanwhile. No signal ends that wait, not
even SIGKILL, and a killed worker has not ended while one of its threads waits. Then the requests
would never be answered, because the next worker comes after the end of the one before. So a process
of its own waits. It shares the worker's private memory and descriptors, as a child of vfork(2)
does, makes one call, and ends. It touches no table, so it may outlive the worker. If there is no
process to be had, the pages stay.

The other notifications wait for no request, and take no lock of the kernel that a request holds.

Over io_uring, too, notifications go through /dev/fuse.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from passthrough.core.abi cimport (
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_NOTIFY_PRUNE,
    FUSE_NOTIFY_RETRIEVE,
    fuse_notify_inval_inode_out,
    fuse_notify_prune_out,
    fuse_notify_retrieve_out,
    fuse_out_header,
)
from passthrough.core.libc cimport EAGAIN, EINTR, ENODEV, errno, iovec, pid_t, writev

cdef extern from "<sched.h>" nogil:
    enum:
        CLONE_FILES, CLONE_VFORK, CLONE_VM
    int clone(int (*work)(void *) noexcept nogil, void *stack, int flags, void *argument)

cdef extern from "<sys/wait.h>" nogil:
    enum:
        __WALL
    pid_t waitpid(pid_t pid, int *status, int options)

cdef enum:
    ATTRIBUTES_ONLY = -1  # for the offset
    TO_THE_END = 0  # for the length
    STACK_SIZE = 1 << 15  # the dynamic linker may save all registers there, 11 KiB on some machines


# For the process that calls `_drop_pages`.
cdef struct Drop:
    Volume *volume
    uint64_t nodeid
    int result
    bint is_done


cdef int attributes_changed(Volume *v, uint64_t nodeid) noexcept nogil:
    """Drop the attributes of an inode; its pages stay. -ENOENT: the kernel does not know it."""
    return _inval_inode(v, nodeid, ATTRIBUTES_ONLY, 0)


cdef int data_changed(Volume *v, uint64_t nodeid) noexcept nogil:
    """Drop the attributes and all cached pages of an inode, of which no request is under way."""
    return _inval_inode(v, nodeid, 0, TO_THE_END)


cdef int drop_pages(Volume *v, uint64_t nodeid) noexcept nogil:
    """Do as `data_changed`, for pages that requests are under way for.

    -EAGAIN: there is no process to be had, as with a limit of a cgroup, or it was killed.
    """
    cdef char stack[STACK_SIZE]
    cdef Drop drop = Drop(volume=v, nodeid=nodeid, is_done=False)
    cdef void *top = <void *>(<uint64_t>(stack + STACK_SIZE) & ~<uint64_t>15)
    # This thread waits for the end of the process, which sends no signal. SIGKILL ends the wait.
    cdef int pid = clone(_drop_pages, top, CLONE_VM | CLONE_VFORK | CLONE_FILES, &drop)
    while pid > 0 and waitpid(pid, NULL, __WALL) < 0 and errno == EINTR:
        pass
    return drop.result if drop.is_done else -EAGAIN


cdef int _drop_pages(void *argument) noexcept nogil:
    cdef Drop *drop = <Drop *>argument
    drop.result = data_changed(drop.volume, drop.nodeid)
    drop.is_done = True
    return 0


cdef int prune(Volume *v, const uint64_t *nodeids, uint32_t count) noexcept nogil:
    """Have the kernel forget inodes that no process uses, Linux 6.18; -EINVAL: it is older."""
    cdef fuse_notify_prune_out body
    cdef fuse_out_header header
    cdef iovec parts[3]
    memset(&body, 0, sizeof(body))
    body.count = count
    parts[2].iov_base = <void *>nodeids
    parts[2].iov_len = count * sizeof(uint64_t)
    return _send(v, FUSE_NOTIFY_PRUNE, &header, parts, &body, sizeof(body), 3)


cdef int provoke_request(Volume *v, uint64_t nodeid) noexcept nogil:
    """Have the kernel send a request that needs no answer, which wakes one blocked reader.

    The request is NOTIFY_REPLY, with 0 bytes of the cached pages of a regular file.
    """
    cdef fuse_notify_retrieve_out body
    memset(&body, 0, sizeof(body))
    body.nodeid = nodeid
    return _notify(v, FUSE_NOTIFY_RETRIEVE, &body, sizeof(body))


cdef int provoke_numbered(Volume *v, uint64_t nodeid, uint32_t number) noexcept nogil:
    """Have the kernel send a request with a number of its own, which it answers as others."""
    cdef fuse_notify_retrieve_out body
    memset(&body, 0, sizeof(body))
    # Far beyond the numbers that the kernel gives, and even, as they are.
    body.notify_unique = (<uint64_t>1 << 62) + 2 * <uint64_t>number
    body.nodeid = nodeid
    return _notify(v, FUSE_NOTIFY_RETRIEVE, &body, sizeof(body))


cdef int _inval_inode(Volume *v, uint64_t nodeid, int64_t offset, int64_t length) noexcept nogil:
    cdef fuse_notify_inval_inode_out body
    body.ino = nodeid
    body.off = offset
    body.len = length
    return _notify(v, FUSE_NOTIFY_INVAL_INODE, &body, sizeof(body))


cdef int _notify(Volume *v, int code, void *body, size_t size) noexcept nogil:
    cdef fuse_out_header header
    cdef iovec parts[2]
    return _send(v, code, &header, parts, body, size, 2)


cdef int _send(
    Volume *v, int code, fuse_out_header *header, iovec *parts, void *body, size_t size, int count
) noexcept nogil:
    """Send a notification of `count` parts, of which the first two are made here."""
    cdef int fd = v.device_fd
    if fd < 0:
        return -ENODEV
    header.len = <unsigned int>(sizeof(fuse_out_header) + size)
    if count > 2:
        header.len += <unsigned int>parts[2].iov_len
    header.error = code
    header.unique = 0
    parts[0].iov_base = header
    parts[0].iov_len = sizeof(fuse_out_header)
    parts[1].iov_base = body
    parts[1].iov_len = size
    if writev(fd, parts, count) < 0:
        return -errno
    return 0

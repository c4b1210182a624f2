"""Notifications: messages to the kernel that answer no request, such as cache invalidations.

To drop cached pages, the kernel waits until requests that read or write them are answered. So a
thread may call `data_changed` only if another thread serves meanwhile, or if the file passes
through and so has no cached pages (locks.pyx). The other notifications wait for no request, and
take no lock of the kernel that a request holds.

Over io_uring, too, notifications go through /dev/fuse.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from passthrough.native.abi cimport (
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_NOTIFY_RETRIEVE,
    fuse_notify_inval_inode_out,
    fuse_notify_retrieve_out,
    fuse_out_header,
)
from passthrough.native.libc cimport ENODEV, errno, iovec, writev

cdef enum:
    ATTRIBUTES_ONLY = -1  # for the offset
    TO_THE_END = 0  # for the length


cdef int attributes_changed(Volume *v, uint64_t nodeid) noexcept nogil:
    """Drop the attributes of an inode; its pages stay. -ENOENT: the kernel does not know it."""
    return _inval_inode(v, nodeid, ATTRIBUTES_ONLY, 0)


cdef int data_changed(Volume *v, uint64_t nodeid) noexcept nogil:
    """Drop the attributes and all cached pages of an inode."""
    return _inval_inode(v, nodeid, 0, TO_THE_END)


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
    cdef int fd = v.device_fd
    if fd < 0:
        return -ENODEV
    header.len = <unsigned int>(sizeof(header) + size)
    header.error = code
    header.unique = 0
    parts[0].iov_base = &header
    parts[0].iov_len = sizeof(header)
    parts[1].iov_base = body
    parts[1].iov_len = size
    if writev(fd, parts, 2) < 0:
        return -errno
    return 0

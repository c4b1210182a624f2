"""The C part for libfuse's binding, pyfuse3: fills its objects, and waits for its requests.

Two things are needed that the properties of these objects do not give. EntryAttributes has one
property for the nodeid and for the st_ino that users see, which are different numbers. And a
ReaddirToken does not say how long a listing may be. So this module writes to the structures of
pyfuse3 themselves. Importing it fails if their size is not the one that is declared here.

For each request pyfuse3 waits three times: for a lock, for the request, and for the lock's release.
In Python, these waits cost 0.5 us more, of 8 us for a GETATTR.
"""

import os

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset

import pyfuse3  # no-cython-lint

from passthrough.core.abi cimport (
    FATTR_ATIME, FATTR_FH, FATTR_GID, FATTR_MODE, FATTR_MTIME, FATTR_SIZE, FATTR_UID, fuse_attr,
    fuse_attr_out, fuse_entry_out, fuse_setattr_in,
)
from passthrough.core.face cimport Core
from passthrough.core.libc cimport EINTR, POLLIN, errno, poll, pollfd, struct_stat
from passthrough.core.state cimport Volume
from passthrough.core.sweep cimport sweep, until_sweep

cdef extern from *:
    """
    #include <sys/stat.h>
    /* libfuse's, fuse_lowlevel.h */
    struct passfs_entry {
        uint64_t ino;
        uint64_t generation;
        struct stat attr;
        double attr_timeout;
        double entry_timeout;
    };
    /* pyfuse3's */
    typedef struct {
        PyObject_HEAD
        struct passfs_entry fuse_param;
        struct stat *attr;
    } PassfsEntryAttributes;
    typedef struct {
        PyObject_HEAD
        void *req;
        char *buf_start;
        char *buf;
        size_t size;
    } PassfsReaddirToken;
    """
    struct passfs_entry:
        uint64_t ino
        uint64_t generation
        struct_stat attr
        double attr_timeout
        double entry_timeout

    ctypedef class pyfuse3.EntryAttributes [object PassfsEntryAttributes, check_size error]:
        cdef passfs_entry fuse_param

    ctypedef class pyfuse3.ReaddirToken [object PassfsReaddirToken, check_size error]:
        cdef char *buf_start  # of malloc(3); pyfuse3 frees it
        cdef char *buf  # where the next name goes
        cdef size_t size  # what is left there

cdef enum:
    NS_PER_S = 1000000000


def entry(bytes reply not None):
    """Return what a name leads to, from a reply that begins with fuse_entry_out."""
    cdef EntryAttributes made = EntryAttributes.__new__(EntryAttributes)
    cdef const fuse_entry_out *out = <const fuse_entry_out *><const char *>reply
    if len(reply) < <Py_ssize_t>sizeof(fuse_entry_out):
        raise ValueError("the reply has no entry")
    _fill(&made.fuse_param.attr, &out.attr)
    made.fuse_param.ino = out.nodeid
    made.fuse_param.generation = out.generation
    made.fuse_param.entry_timeout = _seconds(out.entry_valid, out.entry_valid_nsec)
    made.fuse_param.attr_timeout = _seconds(out.attr_valid, out.attr_valid_nsec)
    return made


def attributes(bytes reply not None):
    """Return the attributes of a file, from a reply that is fuse_attr_out."""
    cdef EntryAttributes made = EntryAttributes.__new__(EntryAttributes)
    cdef const fuse_attr_out *out = <const fuse_attr_out *><const char *>reply
    if len(reply) < <Py_ssize_t>sizeof(fuse_attr_out):
        raise ValueError("the reply has no attributes")
    _fill(&made.fuse_param.attr, &out.attr)
    made.fuse_param.ino = out.attr.ino
    made.fuse_param.attr_timeout = _seconds(out.attr_valid, out.attr_valid_nsec)
    return made


cdef inline double _seconds(uint64_t whole, uint32_t nanoseconds) noexcept:
    return <double>whole + <double>nanoseconds / NS_PER_S


cdef void _fill(struct_stat *st, const fuse_attr *attr) noexcept:
    memset(st, 0, sizeof(struct_stat))
    st.st_ino = attr.ino
    st.st_mode = attr.mode
    st.st_nlink = attr.nlink
    st.st_uid = attr.uid
    st.st_gid = attr.gid
    st.st_rdev = attr.rdev
    st.st_size = <long>attr.size
    st.st_blksize = attr.blksize
    st.st_blocks = <long>attr.blocks
    st.st_atim.tv_sec = <long>attr.atime
    st.st_atim.tv_nsec = attr.atimensec
    st.st_mtim.tv_sec = <long>attr.mtime
    st.st_mtim.tv_nsec = attr.mtimensec
    st.st_ctim.tv_sec = <long>attr.ctime
    st.st_ctim.tv_nsec = attr.ctimensec


def changes(EntryAttributes attr not None, fields, fh):
    """Return the fuse_setattr_in of the fields that change; `fh` is an open file's, or None."""
    cdef const struct_stat *st = &attr.fuse_param.attr
    cdef fuse_setattr_in body
    memset(&body, 0, sizeof(body))
    if fh is not None:
        body.valid |= FATTR_FH
        body.fh = fh
    if fields.update_mode:
        body.valid |= FATTR_MODE
        body.mode = st.st_mode
    if fields.update_uid:
        body.valid |= FATTR_UID
        body.uid = st.st_uid
    if fields.update_gid:
        body.valid |= FATTR_GID
        body.gid = st.st_gid
    if fields.update_size:
        body.valid |= FATTR_SIZE
        body.size = <uint64_t>st.st_size
    if fields.update_atime:
        body.valid |= FATTR_ATIME
        body.atime, body.atimensec = <uint64_t>st.st_atim.tv_sec, <uint32_t>st.st_atim.tv_nsec
    if fields.update_mtime:
        body.valid |= FATTR_MTIME
        body.mtime, body.mtimensec = <uint64_t>st.st_mtim.tv_sec, <uint32_t>st.st_mtim.tv_nsec
    return (<const char *>&body)[:sizeof(body)]


def room(ReaddirToken token not None):
    """Return how many bytes of a listing the kernel takes."""
    return token.size


def deliver(ReaddirToken token not None, bytes listing not None):
    """Answer with a reply of READDIRPLUS, which is the kernel's own form."""
    cdef size_t size = len(listing)
    if not size:
        return
    if size > token.size or token.buf_start != NULL:
        raise ValueError("a listing is longer than it may be, or the second one")
    token.buf_start = <char *>malloc(token.size)
    if token.buf_start == NULL:
        raise MemoryError
    memcpy(token.buf_start, <const char *>listing, size)
    token.buf = token.buf_start + size
    token.size -= size


cdef class Ready:
    """An awaitable without a result, which is there at once."""

    def __await__(self):
        return self

    def __next__(self):
        raise StopIteration


cdef Ready READY = Ready()


cdef class Lock:
    """A lock that does nothing, because there is only one task."""

    def __aenter__(self):
        return READY

    def __aexit__(self, *_):
        return READY


cdef class Requests:
    """Waits for requests by blocking the process."""

    cdef pollfd _fds[3]
    cdef object _end
    cdef Core _core

    def __init__(
        self, int fuse_fd, int wakeup_fd, int keeper_fd, object end not None, Core core=None
    ):
        """Wait for `fuse_fd`, until another of the descriptors, -1 for none, is readable.

        `end` is called with that descriptor, and returns the error that is then raised. Between
        requests, the volume of `core` is swept.
        """
        self._end = end
        self._core = core
        self._fds[0].fd, self._fds[1].fd, self._fds[2].fd = fuse_fd, wakeup_fd, keeper_fd
        self._fds[0].events = self._fds[1].events = self._fds[2].events = POLLIN

    def wait_readable(self, _):
        """Wait for a request; at the end none is read, even if there is one.

        Raises:
            OSError: memory has run out.
        """
        cdef Volume *volume = NULL if self._core is None else self._core._volume
        cdef int wait = -1
        cdef int result = 0
        cdef int error = EINTR
        with nogil:
            while result == 0 or error == EINTR:  # the other descriptors tell of signals
                if volume != NULL:
                    if until_sweep(volume) == 0:
                        sweep(volume)
                    wait = until_sweep(volume)
                result = poll(self._fds, 3, wait)
                error = 0 if result >= 0 else errno
        if error:
            raise OSError(error, os.strerror(error))
        for index in range(1, 3):
            if self._fds[index].revents:
                raise self._end(self._fds[index].fd)
        return READY

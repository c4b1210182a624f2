"""The core for Python: a volume that serves requests, of the kernel or of a caller here.

A `Core` owns its source, all descriptors that requests open, and its threads. A thread that the
host holds up for ever keeps its volume's memory: then `close` frees nothing, and the process ends.
"""

import errno
import os

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from passthrough.native.abi cimport fuse_in_header, fuse_out_header
from passthrough.native.configure cimport configure, limits_of, set_links
from passthrough.native.crew cimport DEVICE, Crew, free_crew, in_flight, make_crew, stop_crew
from passthrough.native.device cimport (
    REQUEST_AT, REQUEST_ROOM, free_buffers, make_buffers, receive, send, use_buffers,
)
from passthrough.native.backing cimport try_backing
from passthrough.native.identity cimport identity_thread
from passthrough.native.inodes cimport inodes_close, inodes_open
from passthrough.native.layout cimport (
    DIRECTORIES, FILES, Found, Limits, OpenFile, open_get,
)
from passthrough.native.libc cimport S_IFMT, close, fstat, struct_stat
from passthrough.native.listing cimport streams_close, streams_open
from passthrough.native.locks cimport locks_close, locks_open, waiting
from passthrough.native.loop cimport OUT_HEADER, serve
from passthrough.native.memory cimport create, detach, trim
from passthrough.native.queues cimport start_queues
from passthrough.native.service cimport start_service
from passthrough.native.state cimport Thread, Volume
from passthrough.native.uring cimport Ring, close_ring, open_ring
from passthrough.native.watch cimport INTERRUPTED, KEEPER_ENDED as _KEEPER_ENDED, watch
from passthrough.linux import fdpath, filehandles, syscalls
from passthrough.native.loop import opcodes  # no-cython-lint - for tests
from passthrough.options.choices import InodeFileHandles

cdef extern from "<pthread.h>" nogil:
    unsigned long pthread_self()

KEEPER_ENDED = _KEEPER_ENDED


cdef class Core:
    """One volume. `python` has the methods that rare.pyx calls; the core borrows it."""

    def __cinit__(self):
        cdef int error = 0
        self._volume = <Volume *>calloc(1, sizeof(Volume))
        self._own = <Thread *>calloc(1, sizeof(Thread))
        if self._volume == NULL or self._own == NULL:
            raise MemoryError
        self._volume.device_fd = -1
        self._crew = make_crew(self._volume, NULL, DEVICE, &error)
        if self._crew == NULL:
            raise OSError(error, os.strerror(error))

    def __init__(self, object config, int source_fd, object python):
        """Serve `source_fd`, an O_PATH descriptor of a directory; the core then owns it.

        `config` has the effective options.

        Raises:
            OSError: the directory cannot be looked at, or memory has run out.
        """
        self._python = python
        self._volume.python = <void *>python
        try:
            configure(self._volume, config, source_fd)
            set_links(self._volume, fdpath.of(0).removesuffix(b"0"))
            self._make_tables(config, source_fd)
        except BaseException:
            close(source_fd)
            raise
        for result in (
            inodes_open(self._volume), streams_open(self._volume), locks_open(self._volume),
            make_buffers(&self._buffers, self._crew.memory_fd, 0),
        ):
            _check(result)
        self._own.volume = self._volume
        use_buffers(self._own, &self._buffers)

    cdef _make_tables(self, config, int source_fd):
        cdef Limits limits
        cdef Found root
        cdef struct_stat st
        cdef int error = 0
        cdef int mount_fd = _open_mount(config, source_fd)
        if fstat(source_fd, &st) < 0:
            raise OSError(errno.EIO, "fstat(2) of the source failed")
        memset(&root, 0, sizeof(root))
        root.ino, root.device, root.fd = st.st_ino, st.st_dev, source_fd
        root.type = <unsigned short>(st.st_mode & S_IFMT)
        limits_of(&limits, config, mount_fd >= 0)
        self._volume.tables = create(
            &limits, syscalls.mount_id(source_fd), mount_fd, &root, &error
        )
        if self._volume.tables == NULL:
            if mount_fd >= 0:
                close(mount_fd)
            raise OSError(error, os.strerror(error))

    def use_device(self, int fd):
        """Write replies and notifications to `fd`, which is borrowed; -1: to none any more."""
        self._volume.device_fd = fd

    def agree(self, uint64_t flags, uint32_t minor, bint passthrough):
        """Note what INIT has agreed on; `passthrough`: the kernel may read and write by itself."""
        self._volume.options.init_flags = flags
        self._volume.options.minor = minor
        self._volume.options.passthrough = passthrough

    def try_passthrough(self):
        """Have the kernel pass one file in memory through; return 0 or the errno."""
        cdef int result
        self._prepare()
        with nogil:
            result = try_backing(self._own)
        return -result

    def pass_nothing_through(self):
        """Have the core read and write all files."""
        self._volume.options.passthrough = False

    def answer(self, bytes request not None):
        """Serve the bytes of one request; return those of the reply, or None if it has none."""
        cdef uint32_t length = <uint32_t>len(request)
        self._prepare()
        if len(request) > REQUEST_ROOM - REQUEST_AT:
            raise ValueError("the request is longer than any")
        memcpy(self._buffers.request + REQUEST_AT, <const char *>request, length)
        with nogil:
            length = serve(self._own, length)
        return (self._own.out - OUT_HEADER)[:length] if length else None

    def call(
        self, uint32_t opcode, uint64_t nodeid, uint32_t uid, uint32_t gid, uint32_t pid,
        bytes body not None, bytes more not None=b"",
    ):
        """Serve a request with the body `body` and then `more`; return the reply's body.

        Raises:
            OSError: the errno of the reply.
        """
        reply = self.ask(opcode, nodeid, uid, gid, pid, body, more)
        if isinstance(reply, int):
            raise OSError(reply, os.strerror(reply))
        return reply

    def ask(
        self, uint32_t opcode, uint64_t nodeid, uint32_t uid, uint32_t gid, uint32_t pid,
        bytes body not None, bytes more not None=b"",
    ):
        """Serve a request as `call`, but return the errno of a reply that has one."""
        cdef fuse_in_header *h = <fuse_in_header *>(self._buffers.request + REQUEST_AT)
        cdef const fuse_out_header *out
        cdef Py_ssize_t size = len(body)
        cdef Py_ssize_t size_more = len(more)
        cdef uint32_t length
        self._prepare()
        if size + size_more > REQUEST_ROOM - REQUEST_AT - <Py_ssize_t>sizeof(fuse_in_header):
            raise ValueError("the request is longer than any")
        memset(h, 0, sizeof(fuse_in_header))
        h.len = <uint32_t>(sizeof(fuse_in_header) + size + size_more)
        h.opcode, h.nodeid, h.uid, h.gid, h.pid = opcode, nodeid, uid, gid, pid
        h.unique = 2
        memcpy(h + 1, <const char *>body, size)
        memcpy(<char *>(h + 1) + size, <const char *>more, size_more)
        with nogil:
            length = serve(self._own, h.len)
        if not length:
            return b""
        out = <const fuse_out_header *>(self._own.out - OUT_HEADER)
        return -out.error if out.error else self._own.out[:length - OUT_HEADER]

    def flags_of(self, uint64_t fh):
        """Return the open(2) flags that requests to an open file follow, as it was opened."""
        cdef const OpenFile *file = open_get(self._volume.tables, FILES, fh)
        return file.flags if file != NULL else 0

    def trim(self):
        """Give memory back, if the kernel has forgotten most inodes that it knew."""
        trim(self._volume.tables)

    def serve_one(self):
        """Serve one request of the device; return false if there will be no more."""
        cdef int received
        cdef uint32_t length
        self._prepare()
        with nogil:
            received = receive(self._own, &self._buffers)
            if received > 0:
                length = serve(self._own, <uint32_t>received)
                if length:
                    send(self._own, length)
        _check(received)
        return received > 0

    def start(self, processors=()):
        """Start the threads that serve the device, and those that serve queues of io_uring.

        Requests come over io_uring if `processors` has the numbers of all that there may be.

        Raises:
            OSError: EAGAIN, there is no thread to be had; the kernel takes no entry of a queue.
        """
        cdef int count = len(processors), index, result
        cdef int *numbers = <int *>calloc(count + 1, sizeof(int))
        if numbers == NULL:
            raise MemoryError
        try:
            for index in range(count):
                numbers[index] = processors[index]
            with nogil:
                result = start_service(self._crew)
                if result == 0 and count:
                    result = start_queues(self._crew, numbers, count)
        finally:
            free(numbers)
        _check(result)

    def watch(self, int wakeup_fd, int keeper_fd):
        """Let the pool of threads grow and shrink until the session ends.

        `keeper_fd` may be -1. Return KEEPER_ENDED if the pipe has no writer left; 0 at any other
        end.

        Raises:
            OSError: the connection to the kernel is broken.
        """
        cdef int result
        while True:
            with nogil:
                result = watch(self._crew, wakeup_fd, keeper_fd)
            if result != INTERRUPTED:
                break
        if self._crew.error:
            raise OSError(self._crew.error, os.strerror(self._crew.error))
        return result if result == _KEEPER_ENDED else 0

    def stop(self):
        """Serve no further request."""
        with nogil:
            stop_crew(self._crew)

    def in_flight(self):
        """Return the number of requests in service."""
        cdef int count = 0
        cdef Crew *crew = self._crew
        while crew != NULL:
            count += in_flight(crew)
            crew = crew.next
        return count

    def waiting(self):
        """Return the number of requests that wait for locks."""
        return waiting(self._volume)

    def threads(self):
        """Return the number of threads that read or serve."""
        cdef int count = 0
        cdef Crew *crew = self._crew
        while crew != NULL:
            count += crew.size
            crew = crew.next
        return count

    @property
    def inodes(self):
        """The number of inodes that the kernel knows."""
        return self._volume.tables.header.inodes

    @property
    def files(self):
        """The number of open files."""
        return self._volume.tables.header.opens[FILES]

    @property
    def directories(self):
        """The number of open directories."""
        return self._volume.tables.header.opens[DIRECTORIES]

    @property
    def source_type(self):
        """The type of the file system that the source lies on, linux/magic.h."""
        return self._volume.options.source_type

    def close(self):
        """Close all descriptors and free all memory, unless a thread is left; return whether."""
        if self._volume == NULL or self._volume.tables == NULL:
            return True
        self._volume.device_fd = -1
        if self._crew != NULL:
            if not free_crew(self._crew):
                return False
            self._crew = NULL
        locks_close(self._volume)
        streams_close(self._volume)
        inodes_close(self._volume)
        detach(self._volume.tables)
        self._volume.tables = NULL
        free_buffers(&self._buffers)
        return True

    def __dealloc__(self):
        if self._volume != NULL and self._volume.tables == NULL:
            free(self._volume)
            free(self._own)

    cdef _prepare(self):
        """Have the calling thread serve with ids and capabilities of its own; always the same."""
        if self._volume.tables == NULL:
            raise ValueError("the core is closed")
        if not self._ready:
            _check(identity_thread(self._own))
            self._ready = True
            self._thread = pthread_self()
        if self._thread != pthread_self():
            raise RuntimeError("another thread has no ids and capabilities for this core")


cdef _check(int result):
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def try_io_uring():
    """Make a ring as a queue's thread does, and close it; return 0 or the errno."""
    cdef Ring ring
    cdef int result
    memset(&ring, 0, sizeof(ring))
    result = open_ring(&ring)
    if result == 0:
        close_ring(&ring)
    return -result


def _open_mount(config, source_fd):
    """Return a descriptor by which file handles of the source are opened, or -1."""
    if config.inode_file_handles is InodeFileHandles.NEVER:
        return -1
    try:
        return filehandles.open_mount(source_fd)
    except OSError:  # options/effective.py has said why
        return -1

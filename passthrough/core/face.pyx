"""The core for Python: a volume that serves requests, of the kernel or of a caller here.

A `Core` owns its source, all descriptors that requests open, and its threads. A thread that the
host holds up for ever keeps its volume's memory, and the object of Python that it calls: then
`close` frees nothing, and both stay until the process ends. A closed core refuses all calls but
those of a session's end.
"""

import os

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from passthrough.core.abi cimport fuse_in_header, fuse_out_header
from passthrough.core.configure cimport adopt_tables, array_of, configure, make_tables, set_links
from passthrough.core.crew cimport DEVICE, Crew, free_crew, in_flight, make_crew, stop_crew
from passthrough.core.device cimport (
    REQUEST_AT, REQUEST_ROOM, free_buffers, make_buffers, receive, send, use_buffers,
)
from passthrough.core.backing cimport try_backing
from passthrough.core.identity cimport identity_thread
from passthrough.core.inodes cimport inodes_close, inodes_open
from passthrough.core.journal cimport end_request
from passthrough.core.layout cimport DIRECTORIES, FILES, OpenFile, RELAXED, open_get, store32
from passthrough.core.libc cimport close
from passthrough.core.listing cimport streams_close, streams_open
from passthrough.core.locks cimport locks_close, locks_open, waiting
from passthrough.core.loop cimport OUT_HEADER, serve
from passthrough.core.lost cimport open_beside, still_open
from passthrough.core.memory cimport detach, trim
from passthrough.core.queues cimport start_queues
from passthrough.core.service cimport start_service
from passthrough.core.state cimport Thread, Volume
from passthrough.core.takeover cimport close_lost, take_over
from passthrough.core.watch cimport INTERRUPTED, KEEPER_ENDED as _KEEPER_ENDED, watch
from passthrough.linux import fdpath
from passthrough.core.loop import opcodes  # no-cython-lint - for tests

cdef extern from "<pthread.h>" nogil:
    unsigned long pthread_self()

KEEPER_ENDED = _KEEPER_ENDED


cdef class Core:
    """One volume. `python` has the methods that rare.pyx calls.

    The core and its threads each have a reference to `python`. The core's goes with the core, which
    the garbage collector may drop although threads are left.
    """

    def __cinit__(self, object config, int source_fd, object python, memory=None):
        cdef int error = 0
        cdef int requests_fd = -1
        self._volume = <Volume *>calloc(1, sizeof(Volume))
        self._own = <Thread *>calloc(1, sizeof(Thread))
        if self._volume == NULL or self._own == NULL:
            raise MemoryError
        self._volume.device_fd = self._volume.locks_fd = self._volume.streams_fd = -1
        if memory is not None:
            _, requests_fd, self._volume.locks_fd, self._volume.streams_fd = memory
        self._crew = make_crew(self._volume, NULL, DEVICE, requests_fd, &error)
        if self._crew == NULL:
            raise OSError(error, os.strerror(error))

    def __init__(self, object config, int source_fd, object python, memory=None):
        """Serve `source_fd`, an O_PATH descriptor of a directory; the core then owns it.

        `config` has the effective options. `memory` is that of another program's core,
        which this core replaces: the tables name the directory. A worker then has to `take_over`.

        Raises:
            OSError: the directory cannot be looked at, memory has run out, or (EPROTO) `memory` is
                not of this version.
        """
        self._python = python
        self._kept = {}
        self._volume.python = <void *>python
        try:
            if memory is not None:
                configure(self._volume, config, adopt_tables(self._volume, memory[0]))
            else:
                configure(self._volume, config, source_fd)
                make_tables(self._volume, config, source_fd)
            set_links(self._volume, fdpath.of(0).removesuffix(b"0"))
        except BaseException:
            close(source_fd)
            raise
        for result in (
            inodes_open(self._volume), streams_open(self._volume), locks_open(self._volume),
            make_buffers(&self._buffers, self._crew.head, self._crew.memory_fd, 0),
        ):
            _check(result)
        self._own.volume = self._volume
        use_buffers(self._own, &self._buffers)

    def use_device(self, int fd):
        """Write replies and notifications to `fd`, which is borrowed; -1: to none any more."""
        if fd >= 0:
            self._require()
        self._volume.device_fd = fd

    def agree(self, uint64_t flags, uint32_t minor, bint passthrough):
        """Note what INIT has agreed on; `passthrough`: the kernel may read and write by itself."""
        self._require()
        self._volume.options.init_flags = flags
        self._volume.options.minor = minor
        self._volume.options.passthrough = passthrough

    def try_passthrough(self):
        """Have the kernel pass one file in memory through; return 0 or the errno."""
        cdef int result
        self._prepare()
        self._inside += 1
        with nogil:
            result = try_backing(self._own)
        self._inside -= 1
        return -result

    def pass_nothing_through(self):
        """Have the core read and write all files, with pages ready for the longest WRITE."""
        self._require()
        self._volume.options.passthrough = False
        store32(&self._crew.head.present, REQUEST_ROOM, RELAXED)

    def answer(self, bytes request not None):
        """Serve the bytes of one request; return those of the reply, or None if it has none."""
        cdef uint32_t length = <uint32_t>len(request)
        self._prepare()
        if len(request) > REQUEST_ROOM - REQUEST_AT:
            raise ValueError("the request is longer than any")
        memcpy(self._buffers.request + REQUEST_AT, <const char *>request, length)
        self._inside += 1
        with nogil:
            length = serve(self._own, length)
        self._inside -= 1
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
        self._inside += 1
        with nogil:
            length = serve(self._own, h.len)
        self._inside -= 1
        if not length:
            return b""
        out = <const fuse_out_header *>(self._own.out - OUT_HEADER)
        return -out.error if out.error else self._own.out[:length - OUT_HEADER]

    def flags_of(self, uint64_t fh):
        """Return the open(2) flags that requests to an open file follow, as it was opened."""
        cdef const OpenFile *file
        self._require()
        file = open_get(self._volume.tables, FILES, fh)
        return file.flags if file != NULL else 0

    def trim(self):
        """Give memory back, if the kernel has forgotten most inodes that it knew."""
        self._require()
        trim(self._volume.tables)

    def serve_one(self):
        """Serve one request of the device; return false if there will be no more."""
        cdef int received
        cdef uint32_t length
        self._prepare()
        self._inside += 1
        with nogil:
            received = receive(self._own, &self._buffers)
            if received > 0:
                length = serve(self._own, <uint32_t>received)
                if length:
                    send(self._own, length)
                else:
                    end_request(self._own.journal)
        self._inside -= 1
        _check(received)
        return received > 0

    def note_descriptors(self, but=frozenset()):
        """Note the descriptors that are open now: no worker of the volume can lose them.

        A worker of another program may have lost those in `but`.
        """
        self._require()
        self._kept = {fd: at for fd, at in open_beside(self._volume).items() if fd not in but}

    @property
    def memory(self):
        """The descriptors of the memory of tables, requests, locks and directory streams."""
        self._require()
        return (
            self._volume.tables.fd, self._crew.memory_fd,
            self._volume.locks_fd, self._volume.streams_fd,
        )

    def take_over(self, kept=()):
        """Go on where the worker before has died; return how many requests it had in hand.

        For a process that has been cloned, with its table of descriptors, from one that has called
        `note_descriptors` after INIT; before `start`. `kept` has descriptors that the caller has
        opened since. `watch` closes those that the worker has lost.

        Raises:
            OSError: memory has run out, or (EPROTO) is damaged; EBUSY, this process serves already.
        """
        cdef list known = [*still_open(self._kept), *kept]
        cdef int count = len(known), result
        cdef int *numbers
        self._require()
        numbers = array_of(known)
        with nogil:
            result = take_over(self._crew, numbers, count, &self._lost)
        free(numbers)
        _check(result)
        return result

    def start(self, processors=()):
        """Start the threads that serve the device, and those that serve queues of io_uring.

        Requests come over io_uring if `processors` has the numbers of all that there may be.

        Raises:
            OSError: EAGAIN, there is no thread to be had; the kernel takes no entry of a queue.
        """
        cdef int count = len(processors), result
        cdef int *numbers
        self._require()
        self._lend()
        numbers = array_of(processors)
        self._inside += 1
        with nogil:
            result = start_service(self._crew, count == 0)
            if result == 0 and count:
                result = start_queues(self._crew, numbers, count)
        self._inside -= 1
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
        self._require()
        with nogil:
            close_lost(&self._lost)
        while True:
            self._inside += 1
            with nogil:
                result = watch(self._crew, wakeup_fd, keeper_fd)
            self._inside -= 1
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
        self._require()
        return self._volume.tables.header.inodes

    @property
    def files(self):
        """The number of open files."""
        self._require()
        return self._volume.tables.header.opens[FILES]

    @property
    def directories(self):
        """The number of open directories."""
        self._require()
        return self._volume.tables.header.opens[DIRECTORIES]

    @property
    def source_type(self):
        """The type of the file system that the source lies on, linux/magic.h."""
        self._require()
        return self._volume.options.source_type

    def close(self):
        """Close all descriptors and free all memory, unless a thread is left; return whether.

        If not, it can be called again. A thread that is left for ever keeps `python` alive.
        """
        if self._volume == NULL or self._volume.tables == NULL:
            return True
        self._volume.device_fd = -1
        if self._inside or not free_crew(self._crew):
            return False
        self._crew = NULL
        locks_close(self._volume)
        streams_close(self._volume)
        inodes_close(self._volume)
        detach(self._volume.tables)
        self._volume.tables = NULL
        free_buffers(&self._buffers)
        if self._lent:
            self._lent = False
            Py_DECREF(<object>self._volume.python)
        return True

    def __dealloc__(self):
        if self._volume != NULL and self._volume.tables == NULL:
            if self._crew != NULL:  # __init__ has failed
                free_crew(self._crew)
            free(self._volume)
            free(self._own)

    cdef _lend(self):
        """Give the threads a reference to `python`, which `close` takes back."""
        if not self._lent:
            self._lent = True
            Py_INCREF(self._python)

    cdef _require(self):
        if self._volume.tables == NULL:
            raise ValueError("the core is closed")

    cdef _prepare(self):
        """Have the calling thread serve with ids and capabilities of its own; always the same."""
        self._require()
        if not self._ready:
            _check(identity_thread(self._own))
            self._ready = True
            self._thread = pthread_self()
        if self._thread != pthread_self():
            raise RuntimeError("another thread has no ids and capabilities for this core")


cdef _check(int result):
    if result < 0:
        raise OSError(-result, os.strerror(-result))

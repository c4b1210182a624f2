"""The tables for tests: each function for Python, and threads that use them without Python."""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from passthrough.native.memory cimport attach, create, detach, rebuild_hash, recover, trim
from passthrough.native.tables cimport (
    BY_HANDLE, DIRECTORIES, FILES, KNOWN, MAX_HANDLE, NEEDS_HANDLE, NEW_BY_HANDLE, NONE, NO_PLACE,
    REPLACED, ROOT_INDEX, TAKEN, UNDECIDED, FileHandle, Found, Gone, Granted, Inode, Limits,
    OpenFile, Released, Tables, add_mount, descriptor, enter_mount, find, forget, grant,
    grant_handle, handle_of, inode_of, leave_mount, mount_descriptor, next_inode, next_open,
    open_add, open_get, open_release, pin, place_on, set_twin, shown_beside, some_by_handle,
)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *, const void *, void *(*)(void *) noexcept nogil, void *)
    int pthread_join(pthread_t, void **)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int, timespec *)

SIZES = (sizeof(Inode), sizeof(OpenFile))
RESULTS = {KNOWN: "known", TAKEN: "taken", NEW_BY_HANDLE: "by handle", NEEDS_HANDLE: "needs handle"}


cdef void _fill(FileHandle *handle, bytes text):
    memset(handle, 0, sizeof(FileHandle))
    handle.handle_bytes = <uint32_t>len(text)
    handle.handle_type = 7
    memcpy(handle.f_handle, <char *>text, len(text))


cdef class Probe:
    """One process's view of tables."""

    cdef Tables *t

    def __init__(
        self, int fd=-1, *, uint32_t inodes=1 << 20, uint32_t opens=1 << 16, uint32_t places=512,
        uint32_t handle_bytes=MAX_HANDLE, uint32_t first_place=0, uint64_t budget=1 << 60,
        uint64_t ino=2, uint64_t device=1,
    ):
        cdef Limits limits
        cdef Found root
        cdef int error = 0
        memset(&limits, 0, sizeof(limits))
        memset(&root, 0, sizeof(root))
        limits.inodes, limits.places, limits.handle_bytes = inodes, places, handle_bytes
        limits.opens[FILES] = limits.opens[DIRECTORIES] = opens
        limits.first_place, limits.budget = first_place, budget
        root.ino, root.device, root.fd, root.type = ino, device, 1000, 0o040000
        self.t = attach(fd, &error) if fd >= 0 else create(&limits, 77, 999, &root, &error)
        if self.t == NULL:
            raise OSError(error, "tables")

    def __dealloc__(self):
        if self.t != NULL:
            detach(self.t)

    @property
    def fd(self):
        return self.t.fd

    def grant(self, ino, fd, *, device=1, place=0, handle=None, expected=0, type=0o100000):
        cdef Found found
        cdef Granted out
        cdef FileHandle buffer
        cdef int result
        memset(&found, 0, sizeof(found))
        found.ino, found.device, found.place, found.fd = ino, device, place, fd
        found.type, found.expected = type, expected
        if handle is None:
            result = grant(self.t, &found, &out)
        else:
            _fill(&buffer, handle)
            result = grant_handle(self.t, &found, &buffer, &out)
        if result < 0:
            raise OSError(-result, "grant")
        return (RESULTS[result], out.nodeid, out.shown_ino) if result != NEEDS_HANDLE else RESULTS[result]

    def forget(self, nodeid, count=1):
        cdef Gone gone
        forget(self.t, nodeid, count, &gone)
        return (gone.fd, gone.mount_fd) if gone.gone else None

    def find(self, ino, place=0):
        cdef Granted out
        cdef int result = find(self.t, place, ino, &out)
        return None if result < 0 else (RESULTS[result], out.nodeid, out.shown_ino)

    def pin(self, ino, fd, handle, *, device=1, place=0):
        cdef Found found
        cdef FileHandle buffer
        memset(&found, 0, sizeof(found))
        _fill(&buffer, handle)
        found.ino, found.device, found.place, found.fd = ino, device, place, fd
        found.handle = &buffer
        return pin(self.t, &found)

    def open(self, nodeid, fd, *, table=FILES, backing=0):
        cdef OpenFile made
        cdef uint64_t fh = 0
        cdef int32_t in_force = 0
        cdef int result
        memset(&made, 0, sizeof(made))
        made.fd, made.twin, made.flags, made.kind = fd, -1, 0o2, 5
        result = open_add(self.t, table, nodeid, &made, backing, &fh, &in_force)
        if result < 0:
            raise OSError(-result, "open")
        return fh, in_force

    def opened(self, fh, table=FILES):
        cdef OpenFile *file = open_get(self.t, table, fh)
        return None if file == NULL else (file.fd, file.twin, file.flags, file.kind, file.nodeid)

    def twin(self, fh, fd, table=FILES):
        return set_twin(open_get(self.t, table, fh), fd)

    def release(self, fh, table=FILES):
        cdef Released out
        cdef int result = open_release(self.t, table, fh, &out)
        if result < 0:
            raise OSError(-result, "release")
        gone = (out.gone.fd, out.gone.mount_fd) if out.gone.gone else None
        return out.fd, out.twin, out.backing_id, gone

    def enter_mount(self, id):
        return enter_mount(self.t, id)

    def add_mount(self, id, fd):
        cdef bint taken = False
        cdef int result = add_mount(self.t, id, fd, &taken)
        return result, taken

    def leave_mount(self, mount):
        return leave_mount(self.t, mount)

    def place_on(self, mount, device):
        cdef uint32_t place = place_on(self.t, mount, device)
        return None if place == NO_PLACE else place

    def inode(self, nodeid):
        cdef Inode *inode = inode_of(self.t, nodeid)
        if inode == NULL:
            return None
        fields = dict(inode[0])
        fields["descriptor"] = descriptor(inode)
        fields["by_handle"] = bool(inode.flags & BY_HANDLE)
        fields["replaced"] = bool(inode.flags & REPLACED)
        fields["mount_fd"] = mount_descriptor(self.t, inode)
        if inode.flags & BY_HANDLE:
            fields["handle"] = handle_of(self.t, inode).f_handle[:handle_of(self.t, inode).handle_bytes]
        return fields

    def shown_beside(self, nodeid, ino):
        return shown_beside(inode_of(self.t, nodeid), ino)

    def some_by_handle(self):
        return some_by_handle(self.t)

    def live(self):
        index, indexes = next_inode(self.t, 0), []
        while index:
            indexes.append(index)
            index = next_inode(self.t, index)
        return indexes

    def live_opens(self, table=FILES):
        index, indexes = next_open(self.t, table, 0), []
        while index:
            indexes.append(index)
            index = next_open(self.t, table, index)
        return indexes

    def nodeid_at(self, index):
        return self.t.inodes[index].nodeid

    def fh_at(self, index, table=FILES):
        return self.t.opens[table][index].fh

    def header(self):
        return dict(self.t.header[0])

    def mounts(self):
        return [dict(self.t.mounts[index]) for index in range(self.t.header.mounts)]

    def places(self):
        return [dict(self.t.places[index]) for index in range(self.t.header.places)]

    def free(self):
        """Return the free list of inodes, and the blocks that are holes."""
        index, indexes = self.t.header.free_inode, []
        while index:
            indexes.append(index)
            index = self.t.inodes[index].next_free
        return indexes, [self.t.holes[hole] for hole in range(self.t.hole_count)]

    def free_opens(self, table=FILES):
        index, indexes = self.t.header.free_open[table], []
        while index:
            indexes.append(index)
            index = <uint32_t>self.t.opens[table][index].nodeid
        return indexes

    def hash(self):
        """Return the indexes in the hash, in the order of their entries."""
        cdef uint64_t at
        return [
            <uint32_t>self.t.hash[at]
            for at in range(self.t.header.hash_mask + 1) if self.t.hash[at]
        ]

    def spoil_hash(self):
        memset(self.t.hash, 0xFF, (self.t.header.hash_mask + 1) * sizeof(uint64_t))

    def write_header(self, offset, bytes data):
        memcpy(<char *>self.t.header + <size_t>offset, <char *>data, len(data))

    def rebuild_hash(self):
        rebuild_hash(self.t)

    def recover(self):
        recover(self.t)

    def trim(self):
        trim(self.t)

    def stress(self, threads, steps, files=20000, seed=1):
        """Have threads grant, forget, open and release; return the first thing that was wrong."""
        return _stress(self.t, threads, steps, files, seed)

    def churn(self, steps, files, seed):
        """Do the same in this thread alone."""
        cdef Task task
        memset(&task, 0, sizeof(task))
        task.t, task.steps, task.files, task.random = self.t, steps, files, seed
        with nogil:
            _run(&task)
        return task.wrong

    def measure(self, count):
        """Return nanoseconds of one grant of a new file, of a known one, and of one forget."""
        cdef uint64_t nodes = 0
        cdef double times[3]
        _measure(self.t, count, times)
        return times[0], times[1], times[2]


# Threads without Python

cdef enum:
    HELD = 8192
    OPENED = 256


cdef struct Task:
    Tables *t
    uint64_t steps
    uint64_t files
    uint64_t random
    uint64_t taken  # sums of descriptors
    uint64_t returned
    int wrong  # a line number, so to speak
    uint32_t held_count
    uint32_t opened_count
    uint64_t held[HELD]
    uint64_t opened[OPENED]


cdef uint64_t _draw(Task *task) noexcept nogil:
    task.random ^= task.random << 13
    task.random ^= task.random >> 7
    task.random ^= task.random << 17
    return task.random >> 8


cdef void _gone(Task *task, const Gone *gone) noexcept nogil:
    if gone.gone and gone.fd >= 0:
        task.returned += <uint64_t>gone.fd


cdef void _grant(Task *task) noexcept nogil:
    cdef Found found
    cdef Granted out
    cdef FileHandle handle
    cdef Inode *inode
    cdef int result
    if task.held_count == HELD:
        return
    memset(&found, 0, sizeof(found))
    found.ino = 100 + _draw(task) % task.files
    found.device = 1 + _draw(task) % 16 // 15
    found.fd = <int32_t>(_draw(task) & 0x3FFFFFFF)
    result = grant(task.t, &found, &out)
    if result == NEEDS_HANDLE:
        memset(&handle, 0, sizeof(handle))
        handle.handle_bytes = 8
        handle.f_handle[0] = _draw(task) % 64 == 0  # another file has got the number
        result = grant_handle(task.t, &found, &handle, &out)
    if result < 0 or result == NEEDS_HANDLE:
        task.wrong = 1
        return
    if result == TAKEN:
        task.taken += <uint64_t>found.fd
    task.held[task.held_count] = out.nodeid
    task.held_count += 1
    inode = inode_of(task.t, out.nodeid)
    if inode == NULL or inode.ino != found.ino or inode.shown_ino != out.shown_ino:
        task.wrong = 2
    elif result == TAKEN and descriptor(inode) != found.fd:
        task.wrong = 3


cdef void _forget(Task *task) noexcept nogil:
    cdef uint32_t at
    cdef Gone gone
    if task.held_count:
        at = <uint32_t>(_draw(task) % task.held_count)
        if inode_of(task.t, task.held[at]) == NULL:
            task.wrong = 4
        forget(task.t, task.held[at], 1, &gone)
        _gone(task, &gone)
        task.held_count -= 1
        task.held[at] = task.held[task.held_count]


cdef void _open(Task *task) noexcept nogil:
    cdef OpenFile made
    cdef OpenFile *file
    cdef uint64_t nodeid, fh
    cdef int32_t in_force
    if not task.held_count or task.opened_count == OPENED:
        return
    memset(&made, 0, sizeof(made))
    made.fd = <int32_t>(_draw(task) & 0x3FFFFFFF)
    nodeid = task.held[_draw(task) % task.held_count]
    if open_add(task.t, FILES, nodeid, &made, 0, &fh, &in_force) < 0:
        task.wrong = 5
        return
    task.taken += <uint64_t>made.fd
    task.opened[task.opened_count] = fh
    task.opened_count += 1
    file = open_get(task.t, FILES, fh)
    if file == NULL or file.fd != made.fd or file.nodeid != nodeid:
        task.wrong = 6


cdef void _release(Task *task) noexcept nogil:
    cdef uint32_t at
    cdef Released out
    if task.opened_count:
        at = <uint32_t>(_draw(task) % task.opened_count)
        if open_release(task.t, FILES, task.opened[at], &out) < 0:
            task.wrong = 7
            return
        task.returned += <uint64_t>out.fd
        _gone(task, &out.gone)
        task.opened_count -= 1
        task.opened[at] = task.opened[task.opened_count]


cdef void *_run(void *argument) noexcept nogil:
    """Grow and shrink in turn; give everything back in the end."""
    cdef Task *task = <Task *>argument
    cdef uint64_t step, choice
    for step in range(task.steps):
        choice = _draw(task) % 16
        if choice < 2:
            _open(task)
        elif choice < 4:
            _release(task)
        elif (choice < 12) == (step // 20000 % 2 == 0):
            _grant(task)
        else:
            _forget(task)
        if step % 5000 == 0:
            trim(task.t)
        if step % 20011 == 0:
            rebuild_hash(task.t)
    while task.held_count and task.wrong == 0:
        _forget(task)
    while task.opened_count and task.wrong == 0:
        _release(task)
    return NULL


cdef int _stress(Tables *t, int count, uint64_t steps, uint64_t files, uint64_t seed) noexcept nogil:
    cdef Task *tasks = <Task *>calloc(<size_t>count, sizeof(Task))
    cdef pthread_t *threads = <pthread_t *>calloc(<size_t>count, sizeof(pthread_t))
    cdef uint64_t balance = 0
    cdef int wrong = 0
    cdef int number
    for number in range(count):
        tasks[number].t = t
        tasks[number].steps = steps
        tasks[number].files = files
        tasks[number].random = seed * 1000003 + <uint64_t>number + 1
        pthread_create(&threads[number], NULL, _run, &tasks[number])
    for number in range(count):
        pthread_join(threads[number], NULL)
        balance += tasks[number].taken - tasks[number].returned
        wrong = wrong or tasks[number].wrong
    free(tasks)
    free(threads)
    if not wrong and balance:
        wrong = 8
    return wrong


cdef double _now() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1e9 + now.tv_nsec


cdef void _measure(Tables *t, uint64_t count, double *times) noexcept nogil:
    cdef Found found
    cdef Granted out
    cdef Gone gone
    cdef uint64_t *nodes = <uint64_t *>calloc(count, sizeof(uint64_t))
    cdef uint64_t number
    cdef double start
    cdef int turn
    memset(&found, 0, sizeof(found))
    found.device = 1
    found.fd = 5
    for turn in range(2):
        start = _now()
        for number in range(count):
            found.ino = 1000 + number
            grant(t, &found, &out)
            nodes[number] = out.nodeid
        times[turn] = (_now() - start) / count
    for number in range(count):
        forget(t, nodes[number], 1, &gone)
    start = _now()
    for number in range(count):
        forget(t, nodes[number], 1, &gone)
    times[2] = (_now() - start) / count
    free(nodes)

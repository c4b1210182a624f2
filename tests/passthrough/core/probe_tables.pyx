"""The tables for tests: each function for Python."""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.journal cimport Journal, begin_request
from passthrough.core.libc cimport MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from passthrough.core.memory cimport adopt, create, detach, rebuild_hash, recover, trim
from passthrough.core.settle cimport drop_unopened, settle, undo
from passthrough.core.tables cimport (
    BY_HANDLE, DIRECTORIES, FILES, KNOWN, MAX_HANDLE, NEEDS_HANDLE, NEW_BY_HANDLE, NO_PLACE,
    PRIVILEGED, RELAXED, REPLACED, TAKEN, FileHandle, Found, Gone, Granted, Inode, Limits,
    OpenFile, Released, Tables, add_mount, created, descriptor, enter_mount, find, forget, grant,
    grant_handle, handle_of, inode_of, leave_mount, mount_descriptor, next_inode, next_open,
    open_add, open_get, open_release, pin, place_on, set_privileged, set_twin, shown_beside,
    some_by_handle, store64, take_back,
)

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
    cdef Journal *j

    def __init__(
        self, int fd=-1, *, int journal=-1, uint32_t inodes=1 << 20, uint32_t opens=1 << 16,
        uint32_t places=512,
        uint32_t handle_bytes=MAX_HANDLE, uint32_t first_place=0, uint64_t budget=1 << 60,
        uint64_t pins=0, uint64_t ino=2, uint64_t device=1,
    ):
        cdef Limits limits
        cdef Found root
        cdef int error = 0
        memset(&limits, 0, sizeof(limits))
        memset(&root, 0, sizeof(root))
        limits.inodes, limits.places, limits.handle_bytes = inodes, places, handle_bytes
        limits.opens[FILES] = limits.opens[DIRECTORIES] = opens
        limits.first_place, limits.budget, limits.pins = first_place, budget, pins
        root.ino, root.device, root.fd, root.type = ino, device, 1000, 0o040000
        self.t = adopt(fd, &error) if fd >= 0 else create(&limits, 77, 999, &root, &error)
        if self.t == NULL:
            raise OSError(error, "tables")
        if fd >= 0:
            recover(self.t)
        if journal >= 0:
            self.j = <Journal *>mmap(
                NULL, sizeof(Journal), PROT_READ | PROT_WRITE, MAP_SHARED, journal, 0
            )

    def __dealloc__(self):
        if self.t != NULL:
            detach(self.t)
        if self.j != NULL:
            munmap(self.j, sizeof(Journal))

    @property
    def fd(self):
        return self.t.fd

    def grant(self, ino, fd, *, device=1, place=0, handle=None, since=None, mode=0o100000):
        cdef Found found
        cdef Granted out
        cdef FileHandle buffer
        cdef int result
        memset(&found, 0, sizeof(found))
        found.ino, found.device, found.place, found.fd = ino, device, place, fd
        found.type, found.dated = mode, since is not None
        found.since = since or 0
        if handle is None:
            result = grant(self.t, self.j, &found, &out)
        else:
            _fill(&buffer, handle)
            result = grant_handle(self.t, self.j, &found, &buffer, &out)
        if result < 0:
            raise OSError(-result, "grant")
        if result == NEEDS_HANDLE:
            return RESULTS[result]
        return RESULTS[result], out.nodeid, out.shown_ino

    def forget(self, nodeid, count=1):
        cdef Gone gone
        forget(self.t, self.j, nodeid, count, &gone)
        return (gone.fd, gone.mount_fd) if gone.gone else None

    def take_back(self, nodeid):
        cdef Gone gone
        take_back(self.t, self.j, nodeid, &gone)
        return (gone.fd, gone.mount_fd) if gone.gone else None

    def begin(self, unique, guilty=0):
        begin_request(self.j, unique)
        self.j.guilty = guilty

    def settle(self, opcode, nodeid=0, bytes body=b""):
        """Find out what has been done for the request, and take it back; return what is noted."""
        cdef bytearray request = bytearray(sizeof(fuse_in_header)) + body
        cdef fuse_in_header *h = <fuse_in_header *><char *>request
        h.len = <uint32_t>len(request)
        h.opcode, h.nodeid = opcode, nodeid
        settle(self.t, self.j, h)
        undo(self.t, self.j, h)
        drop_unopened(self.t)
        return dict(self.j[0])

    def forget_leaving(self, nodeid, count=1):
        """Return what the inode was noted with, if it stays for an open file."""
        cdef Gone gone
        forget(self.t, self.j, nodeid, count, &gone)
        return gone.gone, gone.notes

    def note(self, nodeid, notes):
        inode_of(self.t, nodeid).notes = notes

    def created(self):
        return created(self.t)

    def set_created(self, number):
        self.t.header.created = number

    def set_privileged(self, nodeid):
        set_privileged(self.t, nodeid)

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

    def open(self, nodeid, fd, *, table=FILES, backing=0, kind=5):
        cdef OpenFile made
        cdef uint64_t fh = 0
        cdef int32_t in_force = 0
        cdef int result
        memset(&made, 0, sizeof(made))
        made.fd, made.twin, made.flags, made.kind = fd, -1, 0o2, kind
        result = open_add(self.t, self.j, table, nodeid, &made, backing, &fh, &in_force)
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
        cdef int result = open_release(self.t, self.j, table, fh, &out)
        if result < 0:
            raise OSError(-result, "release")
        gone = (out.gone.fd, out.gone.mount_fd) if out.gone.gone else None
        return out.fd, out.twin, out.backing_id, gone

    def enter_mount(self, mount_id):
        return enter_mount(self.t, mount_id)

    def add_mount(self, mount_id, fd):
        cdef bint taken = False
        cdef int result = add_mount(self.t, mount_id, fd, &taken)
        return result, taken

    def leave_mount(self, mount):
        return leave_mount(self.t, mount)

    def place_on(self, mount, device):
        cdef uint32_t place = place_on(self.t, mount, device)
        return None if place == NO_PLACE else place

    def inode(self, nodeid):
        cdef Inode *inode = inode_of(self.t, nodeid)
        cdef const FileHandle *handle
        if inode == NULL:
            return None
        fields = dict(inode[0])
        fields["descriptor"] = descriptor(inode)
        fields["by_handle"] = bool(inode.flags & BY_HANDLE)
        fields["replaced"] = bool(inode.flags & REPLACED)
        fields["privileged"] = bool(inode.flags & PRIVILEGED)
        fields["mount_fd"] = mount_descriptor(self.t, inode)
        if inode.flags & BY_HANDLE:
            handle = handle_of(self.t, inode)
            fields["handle"] = handle.f_handle[:handle.handle_bytes]
        return fields

    def shown_beside(self, nodeid, ino):
        return shown_beside(self.t, inode_of(self.t, nodeid), ino)

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
            index = self.t.inodes[index].told
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

    def set_hash_room(self, entries):
        """Act as `trim` at work: let the hash have this many entries; None: as many as fit."""
        cdef uint64_t room = self.t.header.offsets.hash_entries if entries is None else entries
        store64(&self.t.hash_room, room, RELAXED)

    def grant_many(self, uint64_t first, uint64_t count):
        """Look up files without the interpreter's lock; return how many lookups failed."""
        cdef Found found
        cdef Granted out
        cdef uint64_t number
        cdef uint64_t failed = 0
        memset(&found, 0, sizeof(found))
        found.device = self.t.places[0].device
        with nogil:
            for number in range(first, first + count):
                found.ino = number
                found.fd = <int32_t>number
                failed += grant(self.t, self.j, &found, &out) < 0
        return failed

"""The tables' layout: inodes and open files in one MAP_SHARED memfd, with no pointers inside.

A process that maps the memory can go on where another was killed, between any two instructions;
tables.pyx says how. Here are the slots, and what needs no lock.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from passthrough.core.libc cimport CLOCK_MONOTONIC_COARSE, clock_gettime, timespec

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef extern from * nogil:
    int ACQUIRE "__ATOMIC_ACQUIRE"
    int RELEASE "__ATOMIC_RELEASE"
    int RELAXED "__ATOMIC_RELAXED"
    int SEQ_CST "__ATOMIC_SEQ_CST"
    uint64_t load64 "__atomic_load_n"(const uint64_t *place, int order)
    int32_t load32 "__atomic_load_n"(const int32_t *place, int order)
    void store64 "__atomic_store_n"(uint64_t *place, uint64_t value, int order)
    uint16_t load16 "__atomic_load_n"(const uint16_t *place, int order)
    void store32 "__atomic_store_n"(int32_t *place, int32_t value, int order)
    void store16 "__atomic_store_n"(uint16_t *place, uint16_t value, int order)
    uint32_t exchange_notes "__atomic_exchange_n"(uint32_t *place, uint32_t value, int order)
    int32_t add32 "__atomic_fetch_add"(int32_t *place, int32_t number, int order)
    bint exchange32 "__atomic_compare_exchange_n"(
        int32_t *place, int32_t *expected, int32_t value, bint weak, int success, int failure
    )


cdef enum:
    ROOT_INDEX = 1
    NONE = 0  # an index that names no slot
    NO_PLACE = 0x7FFFFFFF
    SOURCE_PLACE = 0  # of the source's own mount and device
    MAX_HANDLE = 128  # MAX_HANDLE_SZ, linux/exportfs.h
    # Bytes of the handles of most file systems: ext4 8, xfs and tmpfs 12, btrfs 20. Longer ones are
    # in a table of their own, which otherwise takes no memory.
    SHORT_HANDLE = 24
    SHORT_ROOM = 32  # with the head
    BLOCK = 64  # inodes in a page
    HOST_BITS = 47  # of a number shown; above them the number of the place
    COUNTED_BIT = 55
    MIXED_BIT = 63
    PLACE_LIMIT = 1 << 8  # so many places have numbers of their own above those of the host


# Inode.flags
cdef enum:
    BY_HANDLE = 1  # held by file handle; a descriptor beside it is a pin
    REPLACED = 2  # another file has got the number: only nodeids find the inode
    PRIVILEGED = 4  # given suid or sgid bits while open
    REFUSED = 8  # ESTALE was answered since the last lookup, `is_stale`
    LONG_HANDLE = 32  # of more bytes than SHORT_HANDLE; constant while the inode lives
    LISTED = 64  # a listing had the last lookup, and nothing has opened the file since


# The tables of open files; each counts its fh from 1.
cdef enum:
    FILES = 0
    DIRECTORIES = 1
    OPEN_TABLES = 2


# OpenFile.kind, above its flags
cdef enum:
    USER_SHIFT = 8  # 8 bits: whose it is, `user_bits`
    MARK_SHIFT = 16  # the time of a change that FLUSH has told the kernel of
    KIND_BITS = 0xFF
    USERS = 256
    REFUSALS = 64  # threads of callers whose last ESTALE is remembered
    FEW_SHARE = 16  # of all that may be open, so much is few


# Results of `grant` beside -errno: -ENFILE the table is full, -ENOENT and -ESTALE see `Found`.
cdef enum:
    KNOWN = 0  # counted; the caller keeps its descriptor
    TAKEN = 1  # counted; the descriptor belongs to the table
    NEW_BY_HANDLE = 2  # counted; the caller keeps its descriptor
    NEEDS_HANDLE = 3  # not counted: repeat with the file's handle, or an empty one if it has none


cdef enum:
    UNDECIDED = -1  # a backing id for `open_add`, which then answers -EAGAIN to a first open


# struct file_handle of open_by_handle_at(2), with room for the longest.
cdef struct FileHandle:
    uint32_t handle_bytes
    int32_t handle_type
    uint8_t f_handle[MAX_HANDLE]


# 64 bytes. Live while nodeid's lower half is the slot's index; a free slot has only the upper half,
# which is the generation of its next use (0: Header.epoch). Lives while lookups or opens are above
# 0; the root, of nodeid 1, for ever.
cdef struct Inode:
    uint64_t nodeid  # generation << 32 | index
    uint64_t ino  # st_ino on the host
    uint64_t lookups
    uint64_t shown_ino  # st_ino that users see
    int32_t fd  # O_PATH descriptor, or -1: held by file handle
    uint32_t place  # index of a Place
    uint32_t opens  # open files and directories on this inode
    int32_t backing_id  # FUSE passthrough, 0: none; constant while opens are above 0
    uint32_t told  # ms at the last lookup, tables.pyx; of a free slot: the next free one
    uint16_t type  # st_mode & S_IFMT
    uint16_t flags  # changed under the mutex; `flags_of` needs none
    # Index of the open file or stream that serves callers without an OPEN (no_open, no_opendir);
    # 0: none. Changed by atomic operations.
    uint32_t notes
    uint32_t born  # Header.created, with this inode


# 32 bytes, live while fh's lower half is the slot's index, as nodeids are.
cdef struct OpenFile:
    uint64_t fh  # generation << 32 | index, from 1
    uint64_t nodeid  # of a free slot: the next one in the free list
    int32_t fd
    int32_t twin  # a second descriptor, with the other choice of O_DIRECT; or -1
    uint32_t flags  # open(2) flags that requests follow
    uint32_t kind  # below USER_SHIFT for the caller: regular, direct, directory


# A mount that inodes lie on, by its id for ever: what is left and entered again gets its number
# again. An inode or a thread that crosses into the mount is a user.
cdef struct Mount:
    uint64_t id
    uint32_t users
    int32_t fd  # a directory for open_by_handle_at(2), -1: no file handles


# One device on one mount: here a st_ino means one file.
cdef struct Place:
    uint64_t device
    uint32_t mount  # index of a Mount
    uint32_t spare


cdef struct Limits:
    uint32_t inodes
    uint32_t opens[OPEN_TABLES]
    uint32_t places
    uint32_t handle_bytes  # a file with a longer handle is held by descriptor
    uint32_t first_place  # 1: each number shown has the number of its place (use_host_ino=true)
    uint64_t budget  # inodes held by descriptor; beyond it by file handle
    uint64_t pins  # descriptors beside file handles, of removed files; 0: no limit
    uint32_t opens_in_all  # of both tables together; 0: no limit
    uint32_t spare


cdef struct Offsets:
    uint64_t inodes
    uint64_t short_handles
    uint64_t handles
    uint64_t opens[OPEN_TABLES]
    uint64_t places
    uint64_t mounts
    uint64_t hash
    uint64_t hash_entries  # most that fit, a power of 2
    uint64_t size


# The last ESTALE to a thread of a caller, `is_stale`; a hint, which needs no mutex.
cdef struct Refusal:
    int32_t pid  # -1: the call has ended
    uint32_t at_ms


# The first page. The fields below "derived" are only an index of the rest.
cdef struct Header:
    uint64_t magic
    uint32_t version
    uint32_t header_size
    Limits limits
    Offsets offsets
    uint64_t counted  # numbers shown that the host did not give
    uint64_t epoch  # generation of slots that have not been used since they were given back
    uint32_t created  # inodes so far, modulo 2**32; read without the mutex
    uint32_t inode_end  # slots from here on are unused
    uint32_t open_end[OPEN_TABLES]
    uint32_t places
    uint32_t mounts
    int32_t backing_high  # the highest id of FUSE passthrough that the kernel has given
    Refusal refusals[REFUSALS]  # by pid
    # derived
    uint32_t inodes  # live ones, the root among them
    uint32_t descriptors  # live inodes held by descriptor, without the root
    uint32_t by_handle  # live inodes held by file handle; read without the mutex
    uint32_t pins  # of them, with a descriptor, too
    uint32_t most  # live ones since the last `trim`
    uint32_t opens[OPEN_TABLES]  # changed under the mutex, read without it
    uint32_t free_inode
    uint32_t free_open[OPEN_TABLES]
    uint32_t hash_used
    uint64_t hash_mask


# In private memory; the mutex is, too: a successor's is its own.
cdef struct Tables:
    Limits limits  # those of the header, which a worker may spoil
    Header *header
    Inode *inodes
    char *short_handles
    char *handles  # the long ones
    OpenFile *opens[OPEN_TABLES]
    Place *places
    Mount *mounts
    uint64_t *hash  # hash << 32 | index; 0: empty
    uint32_t *holes  # blocks without memory, to be used when the free list is empty
    uint32_t hole_count
    uint32_t handle_size
    int32_t fd
    int32_t users[USERS]  # open files and directories of each group of users, `user_bits`
    uint32_t passing  # inodes with a backing id; changed under the mutex
    bint trimming
    uint64_t hash_room  # entries that it may have; fewer while memory behind it is given back
    uint64_t hash_end  # entries that may have memory
    pthread_mutex_t mutex


# A file as statx(2) has found it.
cdef struct Found:
    uint64_t ino
    uint64_t device
    uint32_t place  # of its directory, or from `place_on`
    uint16_t type
    int32_t fd  # O_PATH; -1: count the lookup only if the file is known, else -ENOENT
    const FileHandle *handle  # NULL: not asked for
    # With `dated`, count the lookup only if a descriptor has held the inode since `created` gave
    # `since`, else -ESTALE: the number that statx(2) gave afterwards is then of this file.
    uint32_t since
    bint dated


cdef struct Granted:
    uint64_t nodeid
    uint64_t shown_ino


# The descriptors that a removed inode leaves for the caller to close.
cdef struct Gone:
    int32_t fd  # or -1
    int32_t mount_fd  # or -1
    bint gone
    # Not 0: the kernel has forgotten the inode, which stays for this open file. It was its `notes`.
    uint32_t notes


cdef struct Released:
    int32_t fd
    int32_t twin  # or -1
    int32_t backing_id  # or 0; not 0: the last one on its inode
    uint64_t nodeid
    Gone gone


cdef inline uint32_t milliseconds() noexcept nogil:
    """Return the time modulo 2**32 ms, to the tick of the kernel; no system call."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now)
    return <uint32_t>(now.tv_sec * 1000 + now.tv_nsec // 1000000)


cdef inline Inode *inode_of(Tables *t, uint64_t nodeid) noexcept nogil:
    """Return the inode called `nodeid`, or NULL (ESTALE). Takes no lock.

    The kernel forgets no inode that a request in hand names.
    """
    cdef uint32_t index = <uint32_t>nodeid
    if index == NONE or index >= t.header.limits.inodes:
        return NULL
    if load64(&t.inodes[index].nodeid, ACQUIRE) != nodeid:
        return NULL
    return &t.inodes[index]


cdef inline int descriptor(const Inode *inode) noexcept nogil:
    """Return the descriptor by which the inode is held or pinned; -1: open its file handle."""
    return load32(&inode.fd, ACQUIRE)


cdef inline uint16_t flags_of(const Inode *inode) noexcept nogil:
    return load16(&inode.flags, ACQUIRE)


cdef inline uint32_t created(Tables *t) noexcept nogil:
    """Return how many inodes there have been, for `Found.since`; ask before statx(2)."""
    return <uint32_t>load32(<int32_t *>&t.header.created, ACQUIRE)


cdef inline uint32_t mount_of(Tables *t, const Inode *inode) noexcept nogil:
    """Return the index of the mount that the inode lies on; the source's is 0."""
    return t.places[inode.place].mount


cdef inline const FileHandle *handle_of(Tables *t, const Inode *inode) noexcept nogil:
    """Return the file handle of an inode that is BY_HANDLE; only `handle_bytes` of it are there."""
    if flags_of(inode) & LONG_HANDLE:
        return <const FileHandle *>(t.handles + (inode - t.inodes) * t.handle_size)
    return <const FileHandle *>(t.short_handles + (inode - t.inodes) * SHORT_ROOM)


cdef inline int mount_descriptor(Tables *t, const Inode *inode) noexcept nogil:
    """Return the directory by which file handles of the inode's mount are opened, or -1."""
    return load32(&t.mounts[mount_of(t, inode)].fd, ACQUIRE)


cdef inline OpenFile *open_get(Tables *t, int table, uint64_t fh) noexcept nogil:
    """Return the open file called `fh`, or NULL (EBADF). Takes no lock, as `inode_of`."""
    cdef uint32_t index = <uint32_t>fh
    if index == NONE or index >= t.header.limits.opens[table]:
        return NULL
    if load64(&t.opens[table][index].fh, ACQUIRE) != fh:
        return NULL
    return &t.opens[table][index]


cdef inline uint32_t user_bits(uint32_t uid) noexcept nogil:
    """Return the bits of OpenFile.kind that say for whom a file is open: 256 groups of users."""
    return (uid * 0x9E3779B1u) >> 24 << USER_SHIFT


cdef inline bint may_open(Tables *t, uint32_t uid) noexcept nogil:
    """Return whether there is a descriptor for one more open file or directory; if not: ENFILE.

    The last quarter is for users with few open files, so that no user takes all.
    """
    cdef uint32_t most = t.header.limits.opens_in_all
    cdef uint32_t user = user_bits(uid) >> USER_SHIFT
    cdef uint32_t present = <uint32_t>load32(<int32_t *>&t.header.opens[FILES], RELAXED)
    present += <uint32_t>load32(<int32_t *>&t.header.opens[DIRECTORIES], RELAXED)
    if not most or present < most - most // 4:
        return True
    return present < most and <uint32_t>load32(&t.users[user], RELAXED) < most // FEW_SHARE


cdef inline bint set_twin(OpenFile *file, int fd) noexcept nogil:
    """Give the file its second descriptor; false if another thread was faster."""
    cdef int32_t none = -1
    return exchange32(&file.twin, &none, fd, False, RELEASE, RELAXED)


cdef inline uint64_t shown_in(const Tables *t, uint32_t place, uint64_t ino) noexcept nogil:
    """Return the number that users see of a file: always the same one, also in a listing.

    In the source's own place it is the host's, elsewhere it has the number of the place. If that
    does not fit, all bits of device and number are mixed; 1 << MIXED_BIT marks that.
    """
    cdef uint64_t first = <uint64_t>place + t.header.limits.first_place
    cdef uint64_t mixed
    if not first:
        return ino
    if first < PLACE_LIMIT and ino >> HOST_BITS == 0:
        return (first << HOST_BITS) | ino
    mixed = (ino ^ t.places[place].device * 0x9E3779B97F4A7C15ULL) * 0xD6E8FEB86659FD93ULL
    mixed = (mixed ^ mixed >> 32) * 0x9E3779B97F4A7C15ULL
    return mixed ^ mixed >> 29 | <uint64_t>1 << MIXED_BIT


cdef inline uint64_t shown_beside(const Tables *t, const Inode *inode, uint64_t ino) noexcept nogil:
    """Return the number that users see of a file in the inode's place, for a listing."""
    return shown_in(t, inode.place, ino)


cdef inline bint some_by_handle(Tables *t) noexcept nogil:
    """Return whether a removal must pin the file, because it may be held by handle."""
    return load32(<int32_t *>&t.header.by_handle, ACQUIRE) != 0


cdef inline uint32_t next_inode(Tables *t, uint32_t index) noexcept nogil:
    """Return the first live index after `index`, or NONE; for counters, and to find some file."""
    cdef uint32_t end = <uint32_t>load32(<const int32_t *>&t.header.inode_end, RELAXED)
    index += 1
    while index < end:
        if <uint32_t>load64(&t.inodes[index].nodeid, ACQUIRE) == index:
            return index
        index += 1
    return NONE


cdef inline uint32_t next_open(Tables *t, int table, uint32_t index) noexcept nogil:
    """Return the first live index of an open file after `index`, or NONE."""
    cdef uint32_t end = <uint32_t>load32(<const int32_t *>&t.header.open_end[table], RELAXED)
    index += 1
    while index < end:
        if <uint32_t>load64(&t.opens[table][index].fh, ACQUIRE) == index:
            return index
        index += 1
    return NONE

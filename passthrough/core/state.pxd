"""The structures of one served volume and of its threads, and the results of handlers."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.journal cimport Journal
from passthrough.core.layout cimport SEQ_CST, Tables, load32
from passthrough.core.libc cimport cap_data
from passthrough.core.timeouts cimport Known


# A handler returns the length of the body that it has written to `Thread.out`, or -errno, or
# NO_ANSWER.
cdef enum:
    NO_ANSWER = -0x40000000  # the protocol has no answer


cdef enum:
    MAX_RANGES = 340  # as many as the kernel takes in /proc/PID/uid_map
    MAX_GROUPS = 8  # supplementary groups that a powerless thread may have
    LINKS_ROOM = 24
    PATH_ROOM = 40  # LINKS_ROOM, a descriptor, a 0 byte


# Lines that go to the log once for each errno, or for each volume; rare.py has the texts.
cdef enum Report:
    REPORT_UNMAPPED_UID = 0  # number: the id
    REPORT_UNMAPPED_GID = 1
    REPORT_LEFT_OUT = 2  # number: errno; name: of the file that a listing lacks
    REPORT_NO_HANDLES = 3  # number: errno
    REPORT_BACKING = 4  # number: errno
    REPORT_NO_IDENTITY = 5  # the kernel does not let this process act as a user
    REPORT_UNTAKEN_ANSWER = 6  # number: errno
    REPORT_NO_THREAD = 7  # number: errno
    REPORT_NO_HEADER = 8  # number: bytes of the request
    REPORT_MALFORMED = 9  # number: the opcode of a request without an answer
    REPORT_LOCK_HANGS = 10
    REPORT_REFUSED = 11  # number: opcode of a request that has crashed two workers; name: nodeid
    REPORT_DAMAGE = 12  # name: of what is damaged
    REPORT_KINDS = 13


cdef struct Ids:
    uint32_t uid
    uint32_t gid


cdef struct IdRange:
    uint32_t inside  # the first id of the container
    uint32_t outside  # the first id of the host
    uint32_t count


cdef struct IdMap:
    uint32_t count  # 0: no map, ids pass unchanged
    IdRange ranges[MAX_RANGES]


cdef enum Squash:
    SQUASH_NONE = 0
    SQUASH_ROOT = 1
    SQUASH_ALL = 2


# Effective options, and the features that INIT has agreed on; constant after INIT.
cdef struct Options:
    uint64_t init_flags  # agreed FUSE_* flags
    uint32_t minor
    uint32_t source_type  # f_type of statfs(2)
    uint8_t readonly
    uint8_t seal_size
    uint8_t hide_submounts
    uint8_t xattr
    uint8_t posix_acl
    uint8_t no_open
    uint8_t no_opendir
    uint8_t no_readdir
    uint8_t keep_pages  # Cache.keep_pages
    uint8_t refresh_on_open  # Cache.refresh_on_open
    uint8_t allow_direct_io
    uint8_t writeback
    uint8_t passthrough  # INIT has agreed on FUSE_PASSTHROUGH, and a first file could pass through
    uint8_t noatime  # atime=noatime: files are opened with O_NOATIME
    uint8_t squash  # Squash
    uint8_t restricted  # container root is not the host's: a map or squashing
    uint8_t shows_owner  # owner: every file shows Volume.shown
    uint8_t may_lack_owners  # map_uid may lack the owner of a file
    uint8_t libfuse  # session=libfuse: UTIME_NOW comes as a time
    uint8_t statx_first  # the source is a local file system, where statx(2) asks no server
    uint8_t silent_close  # close(2) of the source's file system does nothing and reports nothing
    uint8_t reserves  # the source's file system may keep blocks for user 0


cdef struct Thread

ctypedef void (*Hook)(Thread *t) noexcept nogil
ctypedef bint (*Ask)(Thread *t) noexcept nogil


# How far `sweep` has come; the main thread's.
cdef struct Sweep:
    int64_t due_ms  # CLOCK_MONOTONIC
    uint64_t at  # in the hash
    uint64_t found  # files without a name, so far and in the sweep before
    uint64_t found_before


cdef struct Volume:
    Options options
    Known timeouts
    IdMap users
    IdMap groups
    Ids anonymous  # anon_uid, anon_gid
    Ids shown  # owner
    Tables *tables
    int32_t device_fd  # /dev/fuse, for notifications and ioctls; -1: no more
    char links[LINKS_ROOM]  # the directory of links to descriptors; empty: it is the working one
    void *python  # the object that rare.pyx calls; borrowed
    # Memory of single modules: private, allocated by their X_open and freed by their X_close.
    void *recent  # inodes
    void *streams  # listing
    void *locks  # locks
    int streams_fd  # memory of listing, which another program can map; -1: not yet
    int locks_fd  # of locks
    void *crew  # crew
    Sweep sweep
    int32_t stopped  # threads serve no further request
    int32_t locks_used  # not 0: there has been a lock of bytes
    int32_t fast_syncs  # in a row (syncs.pyx)
    uint64_t reported[REPORT_KINDS]  # bit errno & 63
    # Of the pool of threads; NULL where there is one thread alone. state.pxd calls them below, for
    # threads of the pool.
    Hook block_hook
    Ask wait_hook
    Ask finish_hook


cdef struct Thread:
    Volume *volume
    const fuse_in_header *request  # in hand, with all its bytes behind it
    Journal *journal  # of that request; of no use to a successor where nothing takes over
    bint again  # a predecessor may have made the calls of the request in hand, journal.pxd
    char *out  # the body of the reply; page-aligned
    uint32_t out_size
    uint32_t umask  # in force for this thread (it has an fs_struct of its own)
    Ids fs  # fsuid and fsgid in force for this thread
    Ids acting  # of a powerless thread: the ids that it acts with
    cap_data capabilities[2]  # all that the thread has outside of guards, without CAP_FSETID
    uint32_t groups[MAX_GROUPS]  # supplementary ones of a powerless thread
    uint32_t group_count
    bint powerless  # acts as a user without capabilities
    bint squashed  # the caller is one that squashing takes
    bint reduced  # a guard has taken capabilities away, or added CAP_FSETID
    uint32_t hits  # a bit for each of 32 lookups that began with statx(2): 1, it was enough
    uint32_t lookups  # of names, for every 16th
    uint64_t served  # requests, for samples; one writer
    uint32_t row  # of the counters
    void *of_crew  # crew.pyx; NULL: of no pool, as the one by which Python calls


ctypedef int (*Handler)(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t length
) noexcept nogil


cdef inline void about_to_block(Thread *t) noexcept nogil:
    """Have another thread serve from now on: this one is about to wait for a disk or a lock."""
    if t.volume.block_hook != NULL and t.of_crew != NULL:
        t.volume.block_hook(t)


cdef inline bint may_wait(Thread *t) noexcept nogil:
    """Return whether another thread serves while this one waits.

    A thread of no pool may always wait: if there is a pool, that serves, and if not, the caller is
    the one that answers for it.
    """
    return t.volume.wait_hook == NULL or t.of_crew == NULL or t.volume.wait_hook(t)


cdef inline bint let_others_finish(Thread *t) noexcept nogil:
    """Wait until other threads have served what they took before, or 20 ms; false: none has.

    A thread of no pool takes its requests from no queue, so that none came before.
    """
    return t.volume.finish_hook != NULL and t.of_crew != NULL and t.volume.finish_hook(t)


cdef inline bint is_stopped(const Volume *v) noexcept nogil:
    """Return whether all requests that are not served yet are left to a successor."""
    return load32(&v.stopped, SEQ_CST)


cdef inline bint uses(const Thread *t, uint64_t feature) noexcept nogil:
    """Return whether INIT has agreed on a FUSE_* flag."""
    return t.volume.options.init_flags & feature != 0


cdef inline void path_of(const Volume *v, int fd, char *path) noexcept nogil:
    """Write the path of the file behind a descriptor, proc_pid_fd(5), into PATH_ROOM bytes.

    For calls that take no O_PATH descriptor. The path leads to the file itself, also to a symlink.
    """
    cdef char digits[12]
    cdef int length = 0, at = 0
    cdef uint32_t number = <uint32_t>fd if fd >= 0 else 0
    while v.links[at]:
        path[at] = v.links[at]
        at += 1
    while True:
        digits[length] = <char>(48 + number % 10)
        length += 1
        number //= 10
        if not number:
            break
    while length:
        length -= 1
        path[at] = digits[length]
        at += 1
    path[at] = 0


cdef inline const char *text(
    const char *arg, uint32_t length, uint32_t at, uint32_t *size
) noexcept nogil:
    """Return the text that begins at byte `at` of a request and ends with a 0 byte, or NULL.

    `size` becomes its length with the 0 byte. A text that must be the last one has
    at + size == length. Without it the request is malformed: EIO.
    """
    cdef const char *end
    if at >= length:
        return NULL
    end = <const char *>memchr(arg + at, 0, length - at)
    if end == NULL:
        return NULL
    size[0] = <uint32_t>(end - (arg + at)) + 1
    return arg + at


cdef inline const char *only_text(const char *arg, uint32_t length, uint32_t at) noexcept nogil:
    """Return the text from byte `at` on that ends the request, or NULL: EIO."""
    cdef uint32_t size = 0
    cdef const char *found = text(arg, length, at, &size)
    if found == NULL or at + size != length:
        return NULL
    return found

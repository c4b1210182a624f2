"""The structures of one served volume and of its threads, and the results of handlers."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from passthrough.native.abi cimport fuse_in_header
from passthrough.native.layout cimport Tables


# A handler returns the length of the body that it has written to `Thread.out`, or -errno, or:
cdef enum:
    NO_ANSWER = -0x40000000  # the protocol has no answer
    DECLINED = -0x40000001  # a handler in Python serves the request


cdef enum:
    MAX_RANGES = 340  # as many as the kernel takes in /proc/PID/uid_map


cdef struct IdRange:
    uint32_t inside  # the first id of the container
    uint32_t outside  # the first id of the host
    uint32_t count


cdef struct IdMap:
    uint32_t count  # 0: no map, ids pass unchanged
    IdRange ranges[MAX_RANGES]


cdef struct Timeout:
    uint64_t seconds
    uint32_t nanoseconds


cdef enum Squash:
    SQUASH_NONE = 0
    SQUASH_ROOT = 1
    SQUASH_ALL = 2


# Effective options, and the features that INIT has agreed on; constant after INIT.
cdef struct Options:
    Timeout file_entry
    Timeout file_attr
    Timeout dir_entry
    Timeout dir_attr
    Timeout negative  # both 0: absent names are not cached
    uint64_t init_flags  # agreed FUSE_* flags
    uint32_t minor
    uint32_t source_type  # f_type of statfs(2)
    int32_t budget  # inodes held by descriptor; beyond it by file handle
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
    uint8_t host_locks
    uint8_t passthrough  # INIT has agreed on FUSE_PASSTHROUGH
    uint8_t packed  # use_host_ino=true: every inode number has the number of its mount
    uint8_t noatime
    uint8_t squash  # Squash
    uint8_t restricted  # container root is not the host's: a map or squashing
    uint8_t may_lack_owners  # map_uid may lack the owner of a file
    uint8_t file_handles  # 0 never, 1 prefer, 2 mandatory


cdef struct Volume:
    Options options
    IdMap users
    IdMap groups
    uint32_t anon_uid
    uint32_t anon_gid
    Tables *tables
    int32_t device_fd  # /dev/fuse, for notifications and ioctls
    int32_t proc_fd  # /proc/self/fd of this process, a directory descriptor


cdef struct Thread:
    Volume *volume
    char *request  # the buffer of requests, in shared memory
    uint32_t request_size
    char *out  # the body of the reply
    uint32_t out_size
    uint32_t umask  # in force for this thread (it has an fs_struct of its own), or -1: not known
    uint32_t fsuid  # in force for this thread
    uint32_t fsgid
    uint64_t requests  # served, for samples


ctypedef int (*Handler)(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t length
) noexcept nogil

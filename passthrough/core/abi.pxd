"""The kernel's FUSE protocol, linux/fuse.h 7.40 to 7.45, with the names that it has there.

Declared here, not taken from the header: the header of the machine that builds may be older than
the kernel of the machine that serves. tests/passthrough/core/test_abi.py compares the two.
Names that begin with `padding`, `unused`, `dummy`, `spare`, `reserved` or two underscores are
padding. The kernel does not check that padding is 0, and a reply must not carry old memory in it.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    FUSE_KERNEL_VERSION = 7
    FUSE_KERNEL_MINOR_VERSION = 45
    FUSE_LEAST_MINOR_VERSION = 40  # Linux 6.9, not in linux/fuse.h
    FUSE_ROOT_ID = 1
    FUSE_MIN_READ_BUFFER = 8192
    FUSE_NAME_MAX = 1024  # fs/fuse/fuse_i.h: the longest name that the kernel sends
    # ioctl(2) on /dev/fuse: a fuse_backing_map in, an id out; an id in (uint32_t).
    FUSE_DEV_IOC_BACKING_OPEN = 0x4010_E501
    FUSE_DEV_IOC_BACKING_CLOSE = 0x4004_E502

cdef enum:  # enum fuse_opcode
    FUSE_LOOKUP = 1, FUSE_FORGET = 2, FUSE_GETATTR = 3, FUSE_SETATTR = 4
    FUSE_READLINK = 5, FUSE_SYMLINK = 6, FUSE_MKNOD = 8, FUSE_MKDIR = 9
    FUSE_UNLINK = 10, FUSE_RMDIR = 11, FUSE_RENAME = 12, FUSE_LINK = 13
    FUSE_OPEN = 14, FUSE_READ = 15, FUSE_WRITE = 16, FUSE_STATFS = 17
    FUSE_RELEASE = 18, FUSE_FSYNC = 20, FUSE_SETXATTR = 21, FUSE_GETXATTR = 22
    FUSE_LISTXATTR = 23, FUSE_REMOVEXATTR = 24, FUSE_FLUSH = 25, FUSE_INIT = 26
    FUSE_OPENDIR = 27, FUSE_READDIR = 28, FUSE_RELEASEDIR = 29, FUSE_FSYNCDIR = 30
    FUSE_GETLK = 31, FUSE_SETLK = 32, FUSE_SETLKW = 33, FUSE_ACCESS = 34
    FUSE_CREATE = 35, FUSE_INTERRUPT = 36, FUSE_BMAP = 37, FUSE_DESTROY = 38
    FUSE_IOCTL = 39, FUSE_POLL = 40, FUSE_NOTIFY_REPLY = 41, FUSE_BATCH_FORGET = 42
    FUSE_FALLOCATE = 43, FUSE_READDIRPLUS = 44, FUSE_RENAME2 = 45, FUSE_LSEEK = 46
    FUSE_COPY_FILE_RANGE = 47, FUSE_SETUPMAPPING = 48, FUSE_REMOVEMAPPING = 49, FUSE_SYNCFS = 50
    FUSE_TMPFILE = 51, FUSE_STATX = 52, FUSE_COPY_FILE_RANGE_64 = 53
    FUSE_OPCODES = 54  # the length of a table by opcode, not in linux/fuse.h

cdef enum:  # enum fuse_notify_code
    FUSE_NOTIFY_POLL = 1, FUSE_NOTIFY_INVAL_INODE = 2, FUSE_NOTIFY_INVAL_ENTRY = 3
    FUSE_NOTIFY_STORE = 4, FUSE_NOTIFY_RETRIEVE = 5, FUSE_NOTIFY_DELETE = 6
    FUSE_NOTIFY_RESEND = 7, FUSE_NOTIFY_INC_EPOCH = 8, FUSE_NOTIFY_PRUNE = 9

cdef enum:  # flags of INIT, the first word
    FUSE_ASYNC_READ = 1 << 0, FUSE_POSIX_LOCKS = 1 << 1
    FUSE_ATOMIC_O_TRUNC = 1 << 3, FUSE_EXPORT_SUPPORT = 1 << 4
    FUSE_BIG_WRITES = 1 << 5, FUSE_DONT_MASK = 1 << 6
    FUSE_SPLICE_WRITE = 1 << 7, FUSE_SPLICE_MOVE = 1 << 8
    FUSE_SPLICE_READ = 1 << 9, FUSE_FLOCK_LOCKS = 1 << 10
    FUSE_HAS_IOCTL_DIR = 1 << 11, FUSE_AUTO_INVAL_DATA = 1 << 12
    FUSE_DO_READDIRPLUS = 1 << 13, FUSE_READDIRPLUS_AUTO = 1 << 14
    FUSE_ASYNC_DIO = 1 << 15, FUSE_WRITEBACK_CACHE = 1 << 16
    FUSE_NO_OPEN_SUPPORT = 1 << 17, FUSE_PARALLEL_DIROPS = 1 << 18
    FUSE_HANDLE_KILLPRIV = 1 << 19, FUSE_POSIX_ACL = 1 << 20
    FUSE_ABORT_ERROR = 1 << 21, FUSE_MAX_PAGES = 1 << 22
    FUSE_CACHE_SYMLINKS = 1 << 23, FUSE_NO_OPENDIR_SUPPORT = 1 << 24
    FUSE_EXPLICIT_INVAL_DATA = 1 << 25, FUSE_MAP_ALIGNMENT = 1 << 26
    FUSE_SUBMOUNTS = 1 << 27, FUSE_HANDLE_KILLPRIV_V2 = 1 << 28
    FUSE_SETXATTR_EXT = 1 << 29, FUSE_INIT_EXT = 1 << 30

# 64 bits. An enum of Cython has the type int, which would cut them; a literal of more than 32 bits
# would become a Python object. So each is a constant of C, named by its expression.
cdef extern from "<stdint.h>" nogil:
    # flags of INIT, the second word: bit 32 is bit 0 of flags2
    const uint64_t FUSE_SECURITY_CTX "(UINT64_C(1) << 32)"
    const uint64_t FUSE_HAS_INODE_DAX "(UINT64_C(1) << 33)"
    const uint64_t FUSE_CREATE_SUPP_GROUP "(UINT64_C(1) << 34)"
    const uint64_t FUSE_HAS_EXPIRE_ONLY "(UINT64_C(1) << 35)"
    const uint64_t FUSE_DIRECT_IO_ALLOW_MMAP "(UINT64_C(1) << 36)"
    const uint64_t FUSE_PASSTHROUGH "(UINT64_C(1) << 37)"
    const uint64_t FUSE_NO_EXPORT_SUPPORT "(UINT64_C(1) << 38)"
    const uint64_t FUSE_HAS_RESEND "(UINT64_C(1) << 39)"
    const uint64_t FUSE_ALLOW_IDMAP "(UINT64_C(1) << 40)"
    const uint64_t FUSE_OVER_IO_URING "(UINT64_C(1) << 41)"
    const uint64_t FUSE_REQUEST_TIMEOUT "(UINT64_C(1) << 42)"
    # a bit of `unique`: the kernel sends the request again
    const uint64_t FUSE_UNIQUE_RESEND "(UINT64_C(1) << 63)"
    # the ids of a caller that the mount's id map lacks, see FUSE_ALLOW_IDMAP
    const uint32_t FUSE_INVALID_UIDGID "UINT32_MAX"

cdef enum:  # fuse_setattr_in.valid
    FATTR_MODE = 1 << 0, FATTR_UID = 1 << 1, FATTR_GID = 1 << 2
    FATTR_SIZE = 1 << 3, FATTR_ATIME = 1 << 4, FATTR_MTIME = 1 << 5
    FATTR_FH = 1 << 6, FATTR_ATIME_NOW = 1 << 7, FATTR_MTIME_NOW = 1 << 8
    FATTR_LOCKOWNER = 1 << 9, FATTR_CTIME = 1 << 10, FATTR_KILL_SUIDGID = 1 << 11

cdef enum:  # fuse_open_out.open_flags
    FOPEN_DIRECT_IO = 1 << 0, FOPEN_KEEP_CACHE = 1 << 1
    FOPEN_NONSEEKABLE = 1 << 2, FOPEN_CACHE_DIR = 1 << 3
    FOPEN_STREAM = 1 << 4, FOPEN_NOFLUSH = 1 << 5
    FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6, FOPEN_PASSTHROUGH = 1 << 7

cdef enum:  # flags of single structures
    FUSE_GETATTR_FH = 1 << 0
    FUSE_OPEN_KILL_SUIDGID = 1 << 0
    FUSE_WRITE_CACHE = 1 << 0
    FUSE_WRITE_LOCKOWNER = 1 << 1
    FUSE_WRITE_KILL_SUIDGID = 1 << 2
    FUSE_READ_LOCKOWNER = 1 << 1
    FUSE_RELEASE_FLUSH = 1 << 0
    FUSE_RELEASE_FLOCK_UNLOCK = 1 << 1
    FUSE_FSYNC_FDATASYNC = 1 << 0
    FUSE_SETXATTR_ACL_KILL_SGID = 1 << 0
    FUSE_LK_FLOCK = 1 << 0
    FUSE_IOCTL_COMPAT = 1 << 0
    FUSE_IOCTL_UNRESTRICTED = 1 << 1
    FUSE_IOCTL_RETRY = 1 << 2
    FUSE_IOCTL_32BIT = 1 << 3
    FUSE_IOCTL_DIR = 1 << 4
    FUSE_POLL_SCHEDULE_NOTIFY = 1 << 0
    FUSE_ATTR_SUBMOUNT = 1 << 0
    FUSE_EXPIRE_ONLY = 1 << 0
    FUSE_EXT_GROUPS = 32  # fuse_ext_header.type; below: the number of security contexts

cdef struct fuse_in_header:
    uint32_t len, opcode
    uint64_t unique, nodeid
    uint32_t uid, gid, pid
    uint16_t total_extlen  # units of 8 bytes
    uint16_t padding

cdef struct fuse_out_header:
    uint32_t len
    int32_t error  # -errno, or the code of a notification
    uint64_t unique

cdef struct fuse_ext_header:
    uint32_t size, type

cdef struct fuse_supp_groups:
    uint32_t nr_groups  # the groups follow: uint32_t each

cdef struct fuse_init_in:
    uint32_t major, minor, max_readahead, flags, flags2
    uint32_t unused[11]

cdef struct fuse_init_out:
    uint32_t major, minor, max_readahead, flags
    uint16_t max_background, congestion_threshold
    uint32_t max_write, time_gran
    uint16_t max_pages, map_alignment
    uint32_t flags2, max_stack_depth
    uint16_t request_timeout
    uint16_t unused[11]

# The kernel reads the times as int64_t.
cdef struct fuse_attr:
    uint64_t ino, size, blocks, atime, mtime, ctime
    uint32_t atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev, blksize, flags

cdef struct fuse_entry_out:
    uint64_t nodeid, generation, entry_valid, attr_valid
    uint32_t entry_valid_nsec, attr_valid_nsec
    fuse_attr attr

cdef struct fuse_attr_out:
    uint64_t attr_valid
    uint32_t attr_valid_nsec, dummy
    fuse_attr attr

# The name follows, padded to 8 bytes.
cdef struct fuse_dirent:
    uint64_t ino, off
    uint32_t namelen, type

cdef struct fuse_direntplus:
    fuse_entry_out entry_out
    fuse_dirent dirent

cdef struct fuse_forget_in:
    uint64_t nlookup

cdef struct fuse_forget_one:
    uint64_t nodeid, nlookup

cdef struct fuse_batch_forget_in:
    uint32_t count, dummy

cdef struct fuse_getattr_in:
    uint32_t getattr_flags, dummy
    uint64_t fh

cdef struct fuse_setattr_in:
    uint32_t valid, padding
    uint64_t fh, size, lock_owner, atime, mtime, ctime
    uint32_t atimensec, mtimensec, ctimensec, mode, unused4, uid, gid, unused5

cdef struct fuse_mknod_in:
    uint32_t mode, rdev, umask, padding

cdef struct fuse_mkdir_in:
    uint32_t mode, umask

cdef struct fuse_rename_in:
    uint64_t newdir

cdef struct fuse_rename2_in:
    uint64_t newdir
    uint32_t flags, padding

cdef struct fuse_link_in:
    uint64_t oldnodeid

cdef struct fuse_open_in:
    uint32_t flags, open_flags

cdef struct fuse_create_in:
    uint32_t flags, mode, umask, open_flags

cdef struct fuse_open_out:
    uint64_t fh
    uint32_t open_flags
    int32_t backing_id

cdef struct fuse_release_in:
    uint64_t fh
    uint32_t flags, release_flags
    uint64_t lock_owner

cdef struct fuse_flush_in:
    uint64_t fh
    uint32_t unused, padding
    uint64_t lock_owner

cdef struct fuse_read_in:
    uint64_t fh, offset
    uint32_t size, read_flags
    uint64_t lock_owner
    uint32_t flags, padding

cdef struct fuse_write_in:
    uint64_t fh, offset
    uint32_t size, write_flags
    uint64_t lock_owner
    uint32_t flags, padding

cdef struct fuse_write_out:
    uint32_t size, padding

cdef struct fuse_kstatfs:
    uint64_t blocks, bfree, bavail, files, ffree
    uint32_t bsize, namelen, frsize, padding
    uint32_t spare[6]

cdef struct fuse_statfs_out:
    fuse_kstatfs st

cdef struct fuse_fsync_in:
    uint64_t fh
    uint32_t fsync_flags, padding

cdef struct fuse_setxattr_in:
    uint32_t size, flags, setxattr_flags, padding

cdef struct fuse_getxattr_in:
    uint32_t size, padding

cdef struct fuse_getxattr_out:
    uint32_t size, padding

cdef struct fuse_file_lock:
    uint64_t start, end
    uint32_t type, pid

cdef struct fuse_lk_in:
    uint64_t fh, owner
    fuse_file_lock lk
    uint32_t lk_flags, padding

cdef struct fuse_lk_out:
    fuse_file_lock lk

cdef struct fuse_access_in:
    uint32_t mask, padding

cdef struct fuse_interrupt_in:
    uint64_t unique

cdef struct fuse_bmap_in:
    uint64_t block
    uint32_t blocksize, padding

cdef struct fuse_bmap_out:
    uint64_t block

cdef struct fuse_ioctl_in:
    uint64_t fh
    uint32_t flags, cmd
    uint64_t arg
    uint32_t in_size, out_size

cdef struct fuse_ioctl_out:
    int32_t result
    uint32_t flags, in_iovs, out_iovs

cdef struct fuse_poll_in:
    uint64_t fh, kh
    uint32_t flags, events

cdef struct fuse_poll_out:
    uint32_t revents, padding

cdef struct fuse_fallocate_in:
    uint64_t fh, offset, length
    uint32_t mode, padding

cdef struct fuse_lseek_in:
    uint64_t fh, offset
    uint32_t whence, padding

cdef struct fuse_lseek_out:
    uint64_t offset

cdef struct fuse_copy_file_range_in:
    uint64_t fh_in, off_in, nodeid_out, fh_out, off_out, len, flags

cdef struct fuse_copy_file_range_out:
    uint64_t bytes_copied

cdef struct fuse_setupmapping_in:
    uint64_t fh, foffset, len, flags, moffset

cdef struct fuse_removemapping_in:
    uint32_t count

cdef struct fuse_syncfs_in:
    uint64_t padding

cdef struct fuse_statx_in:
    uint32_t getattr_flags, reserved
    uint64_t fh
    uint32_t sx_flags, sx_mask

cdef struct fuse_sx_time:
    int64_t tv_sec
    uint32_t tv_nsec
    int32_t __reserved

cdef struct fuse_statx:
    uint32_t mask, blksize
    uint64_t attributes
    uint32_t nlink, uid, gid
    uint16_t mode
    uint16_t __spare0[1]
    uint64_t ino, size, blocks, attributes_mask
    fuse_sx_time atime, btime, ctime, mtime
    uint32_t rdev_major, rdev_minor, dev_major, dev_minor
    uint64_t __spare2[14]

cdef struct fuse_statx_out:
    uint64_t attr_valid
    uint32_t attr_valid_nsec, flags
    uint64_t spare[2]
    fuse_statx stat

cdef struct fuse_notify_poll_wakeup_out:
    uint64_t kh

cdef struct fuse_notify_inval_inode_out:
    uint64_t ino
    int64_t off, len

cdef struct fuse_notify_inval_entry_out:
    uint64_t parent
    uint32_t namelen, flags

cdef struct fuse_notify_delete_out:
    uint64_t parent, child
    uint32_t namelen, padding

cdef struct fuse_notify_store_out:
    uint64_t nodeid, offset
    uint32_t size, padding

cdef struct fuse_notify_retrieve_out:
    uint64_t notify_unique, nodeid, offset
    uint32_t size, padding

cdef struct fuse_notify_retrieve_in:
    uint64_t dummy1, offset
    uint32_t size, dummy2
    uint64_t dummy3, dummy4

cdef struct fuse_notify_prune_out:
    uint32_t count, padding
    uint64_t spare

cdef struct fuse_backing_map:
    int32_t fd
    uint32_t flags
    uint64_t padding
